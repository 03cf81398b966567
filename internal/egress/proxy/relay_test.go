package proxy_test

import (
	"bytes"
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

// What the client does not take at once it gets later, all of it.
func TestSlowReader(t *testing.T) {
	const size = 16 << 20
	w := newWorld(t, proxy.Limits{})
	text := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(text)
	hello := clientHello("example.com")
	w.serve(t, "example.com:443", func(conn *net.TCPConn) {
		io.ReadFull(conn, make([]byte, len(hello)))
		conn.Write(text)
	})
	conn := w.box(t, 1, "*").tls(t)
	conn.SetReadBuffer(64 << 10)
	conn.Write(hello)
	if got, err := ending(t, conn); got != string(text) || err != nil {
		t.Errorf("%d bytes of %d, %v", len(got), size, err)
	}
}

// A client that has ended its side and then goes away altogether does not keep
// its server.
func TestClientGoesAwayHalfClosed(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	ended := make(chan struct{})
	w.serve(t, "example.com:443", func(conn *net.TCPConn) {
		io.Copy(io.Discard, conn) // until the client's end
		close(ended)
		<-t.Context().Done()
	})
	b := w.box(t, 1, "*")
	conn := b.tls(t)
	conn.Write(clientHello("example.com"))
	conn.CloseWrite()
	<-ended
	conn.SetLinger(0)
	conn.Close()
	if r := b.records(t, 1)[0]; r.Verdict != policy.Allow || r.BytesUp == 0 {
		t.Errorf("record %+v", r)
	}
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

// Both directions of a flow that has much to copy go through pipes in the
// kernel, not through us, and nothing is lost on the way there.
func TestSplice(t *testing.T) {
	const flows, size = 10, 1 << 20
	w := newWorld(t, proxy.Limits{})
	w.serve(t, "example.com:443", func(conn *net.TCPConn) { io.Copy(conn, conn) })
	b := w.box(t, 1, "*")
	text := append(clientHello("example.com"), make([]byte, size)...)
	rand.NewChaCha8([32]byte{}).Read(text[len(text)-size:])
	for range flows {
		conn := b.tls(t)
		go conn.Write(text)
		got := make([]byte, len(text))
		if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, text) {
			t.Fatalf("the echo is another, or %v", err)
		}
	}
	eventually(t, "there are too few pipes", func() bool { return descriptors(t, "pipe:") >= flows*4 })
}

// A flow that says little is two sockets and nothing else.
func TestSmallFlowsNeedNoPipes(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.serve(t, "example.com:443", func(conn *net.TCPConn) { io.Copy(conn, conn) })
	conn := w.box(t, 1, "*").tls(t)
	before := descriptors(t, "pipe:")
	echo := func(text []byte) {
		t.Helper()
		conn.Write(text)
		got := make([]byte, len(text))
		if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, text) {
			t.Fatalf("the echo of %d bytes is another, or %v", len(text), err)
		}
	}
	echo(clientHello("example.com"))
	for i := range 100 {
		echo([]byte{byte(i)})
	}
	if n := descriptors(t, "pipe:"); n > before {
		t.Errorf("%d pipes, %d before", n, before)
	}
}

// descriptors counts this process's open files of a kind.
func descriptors(t *testing.T, kind string) (count int) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if target, _ := os.Readlink(link); strings.HasPrefix(target, kind) {
			count++
		}
	}
	return count
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
