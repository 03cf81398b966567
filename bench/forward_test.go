package bench

import (
	"fmt"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/bench/load"
)

// roundTime is how long one contender's turn takes at most.
const roundTime = 250 * time.Millisecond

// BenchmarkForward measures flows that addresses alone allow, which the kernel
// forwards: from a namespace behind NAT without any rules, and from sandboxes
// with ever more rules.
func BenchmarkForward(b *testing.B) {
	plain := plainSlot(b, startPlain(b), 1, "")
	s := startMoat(b)
	all := []flows{{name: "plain", from: plain, to: serverAddr}}
	for i, rules := range []int{0, 100, 10_000} {
		var network *api.Network
		addr := otherAddrs[i]
		if rules > 0 {
			network = denyAllBut(append(otherHosts(rules-1), addr)...)
		}
		_, from := sandbox(b, s, network)
		all = append(all, flows{name: fmt.Sprintf("%d rules", rules), from: from, to: addr})
	}
	b.Run("connections", func(b *testing.B) {
		compare(b, connections(b, all, 16), rate("conn/s"), waited(0.5), waited(0.99))
	})
	b.Run("download", func(b *testing.B) { compare(b, downloads(b, all), speed()) })
}

// flows are what goes from a sandbox to port 443 of an address.
type flows struct {
	name string
	from source
	to   string
	// server is the process that carries them; 0 if the kernel does.
	server int
}

// connections are rounds of many connections to the server, by its name.
func connections(b *testing.B, all []flows, workers int) (c []contender) {
	for _, f := range all {
		c = append(c, contender{f.name, f.server, func() load.Outcome {
			return f.from.run(b, load.Load{
				Kind: load.Connections, Target: f.to + ":443", Name: serverName,
				Workers: workers, Count: 5000, Time: roundTime,
			})
		}})
	}
	return c
}

// downloads are rounds of two endless answers.
func downloads(b *testing.B, all []flows) (c []contender) {
	for _, f := range all {
		c = append(c, contender{f.name, f.server, func() load.Outcome {
			return f.from.run(b, load.Load{
				Kind: load.Download, Target: f.to + ":443", Name: serverName,
				Workers: 2, Count: 2, Time: roundTime,
			})
		}})
	}
	return c
}
