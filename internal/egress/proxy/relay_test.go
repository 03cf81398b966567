package proxy_test

import (
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/policy"
)

// The end of one direction is passed on while the other goes on.
func TestHalfClose(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.serve(t, "example.com:443", func(conn *net.TCPConn) {
		all, _ := io.ReadAll(conn) // until the client's end
		conn.Write(all[len(all)-3:])
	})
	w.serve(t, "first.example:443", func(conn *net.TCPConn) {
		conn.CloseWrite()
		all, _ := io.ReadAll(conn)
		w.net.serve("done", string(all[len(all)-3:]))
	})
	b := w.box(t, 1, "*")
	conn := b.tls(t)
	conn.Write(clientHello("example.com"))
	io.WriteString(conn, "end")
	conn.CloseWrite()
	if got, err := ending(t, conn); got != "end" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	conn = b.tls(t)
	conn.Write(clientHello("first.example"))
	if got, err := ending(t, conn); got != "" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	io.WriteString(conn, "yes")
	conn.CloseWrite()
	eventually(t, "the server did not get what came after its own end", func() bool {
		w.net.mu.Lock()
		defer w.net.mu.Unlock()
		return w.net.names["done"] == "yes"
	})
}

// A server that breaks off breaks off for the client, too.
func TestServerResets(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.serve(t, "example.com:443", func(conn *net.TCPConn) {
		conn.Read(make([]byte, 10))
		conn.SetLinger(0)
	})
	conn := w.box(t, 1, "*").tls(t)
	conn.Write(clientHello("example.com"))
	wantReset(t, conn)
}

// Both directions of a flow go through pipes in the kernel, not through us.
func TestSplice(t *testing.T) {
	const flows = 10
	w := newWorld(t, proxy.Limits{})
	w.serve(t, "example.com:443", func(conn *net.TCPConn) {
		conn.Write([]byte("x"))
		conn.Read(make([]byte, 1))
		<-t.Context().Done()
	})
	b := w.box(t, 1, "*")
	for range flows {
		conn := b.tls(t)
		conn.Write(clientHello("example.com"))
		io.ReadFull(conn, make([]byte, 1))
	}
	eventually(t, "there are too few pipes", func() bool {
		links, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		pipes := 0
		for _, link := range links {
			if target, _ := os.Readlink(link); strings.HasPrefix(target, "pipe:") {
				pipes++
			}
		}
		return pipes >= flows*4
	})
}

func TestListenKeepsAlive(t *testing.T) {
	ln := listen(t)
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		on, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
		idle, err2 := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
		if on != 1 || idle != 60 || err != nil || err2 != nil {
			t.Errorf("keep-alive is %d after %d s, %v, %v", on, idle, err, err2)
		}
	})
}

// What gets through is what the policy allows: by the name, or by the address
// that the sandbox was connecting to.
func TestAgreesWithPolicy(t *testing.T) {
	const tries = 300
	w := newWorld(t, proxy.Limits{})
	names := []string{"example.com", "a.example.com", "b.a.example.com", "other.example", "xexample.com"}
	entries := append([]string{"*", "*.example.com", "*.a.example.com", "45.60.70.0/24", "93.184.216.34"}, names...)
	addrs := []string{"45.60.70.80", "93.184.216.34", "1.1.1.1", "10.0.0.1"}
	answer := func(conn *net.TCPConn) { conn.Write([]byte("through")) }
	for _, target := range append(names, addrs...) {
		w.serve(t, target+":443", answer)
	}
	random := rand.New(rand.NewPCG(1, 2))
	b := w.box(t, 1)
	allowed := 0
	for range tries {
		var allow []string
		for range random.IntN(3) {
			allow = append(allow, entries[random.IntN(len(entries))])
		}
		tenant := b.publish(t, allow...)
		name, addr := names[random.IntN(len(names))], netip.MustParseAddr(addrs[random.IntN(len(addrs))])
		w.mu.Lock()
		w.original = addr
		w.mu.Unlock()
		parsed, err := policy.ParseName(name)
		if err != nil {
			t.Fatal(err)
		}
		want := tenant.Policy.DecideName(parsed, policy.TCP, 443).Verdict == policy.Allow ||
			tenant.Policy.Decide(policy.Flow{Proto: policy.TCP, Dst: netip.AddrPortFrom(addr, 443)}).Verdict == policy.Allow
		conn := b.tls(t)
		conn.Write(clientHello(name))
		got, _ := ending(t, conn)
		if (got == "through") != want {
			t.Errorf("%q: %s at %v gives %q, the policy says %v", allow, name, addr, got, want)
		}
		if want {
			allowed++
		}
		conn.Close()
	}
	if allowed < tries/10 || allowed > tries*9/10 {
		t.Errorf("%d of %d flows were allowed: the test says little", allowed, tries)
	}
}
