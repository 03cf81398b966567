package bench

import (
	"fmt"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/bench/load"
)

// allowedNames is how many names the policy and every peer's table have.
const allowedNames = 1000

// BenchmarkServerNames measures connections that are passed on, or not, by the
// name in their ClientHello: by us, by peers, and by plain NAT that asks for
// no name. Whoever looks names up has them in its cache; nginx and HAProxy have
// the address in their configuration.
func BenchmarkServerNames(b *testing.B) {
	names := append(otherNames(allowedNames-1), serverName)
	s := startMoat(b)
	_, ours := sandbox(b, s, denyAllBut(names...))
	node := startPlain(b)
	all := []flows{
		{"moat", ours, serverAddr, s.PID()},
		{"no filter", plainSlot(b, node, 1, ""), otherAddrs[0], 0},
	}
	const firstPort = 8441
	for i, p := range []peer{
		nginxStream(names, firstPort), haproxyTCP(names, firstPort+1), squidSplice(b, node, names, firstPort+2),
	} {
		if pid, ok := p.start(b, node.Node); ok {
			from := plainSlot(b, node, 2+i, fmt.Sprintf("tcp dport 443 redirect to :%d", p.port))
			all = append(all, flows{p.Name, from, serverAddr, pid})
		}
	}
	for _, f := range all {
		if !f.passes(b, serverName) {
			b.Errorf("%s lets nothing through", f.name)
		}
		if passes := f.passes(b, "forbidden.example.org"); passes != (f.name == "no filter") {
			b.Errorf("%s lets a forbidden name through: %v", f.name, passes)
		}
	}
	if b.Failed() {
		return
	}
	b.Run("connections", func(b *testing.B) {
		compare(b, connections(b, all, 16), rate("conn/s"), waited(0.5), waited(0.99), cost())
	})
	b.Run("one at a time", func(b *testing.B) {
		compare(b, connections(b, all, 1), rate("conn/s"), waited(0.5), waited(0.99), cost())
	})
	b.Run("download", func(b *testing.B) { compare(b, downloads(b, all), speed()) })
}

// passes reports whether a connection by a name gets an answer.
func (f flows) passes(b *testing.B, name string) bool {
	return f.from.prepare(b, load.Load{
		Kind: load.Connections, Target: f.to + ":443", Name: name, Workers: 1, Count: 1, Time: time.Second,
	}).Run() == nil
}
