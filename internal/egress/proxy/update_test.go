package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/policy"
)

// echoes opens a connection that lives on: what is sent comes back.
func (b *box) echoes(t *testing.T, name string) *net.TCPConn {
	t.Helper()
	conn := b.tls(t)
	text := clientHello(name)
	conn.Write(text)
	if got, err := io.ReadAll(io.LimitReader(conn, int64(len(text)))); len(got) != len(text) {
		t.Fatalf("%s: %q, %v", name, got, err)
	}
	return conn
}

func wantAlive(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	io.WriteString(conn, "ping")
	got, err := io.ReadAll(io.LimitReader(conn, 4))
	if string(got) != "ping" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// Attack 30: after an update no flow lives that the new policy denies, and none
// has died that it allows.
func TestAttack30CutOnUpdate(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	echo := func(conn *net.TCPConn) { io.Copy(conn, conn) }
	for _, name := range []string{"a.example", "b.example", attacker} {
		w.serve(t, name+":443", echo)
	}
	b, other := w.box(t, 1, "*.example", attacker), w.box(t, 2, "*.example")
	a, dropped, address := b.echoes(t, "a.example"), b.echoes(t, "b.example"), b.echoes(t, "93.184.216.34")
	neighbour := other.echoes(t, "b.example")

	if cut := b.update(t, "a.example", attacker); cut != 1 {
		t.Errorf("%d flows cut, want 1", cut)
	}
	wantReset(t, dropped)
	wantAlive(t, a)
	wantAlive(t, address)
	wantAlive(t, neighbour)
	r := b.records(t, 1)[0]
	if r.Verdict != policy.Deny || r.Name != "b.example" || r.Generation != 2 || r.BytesUp == 0 || r.BytesDown == 0 || !strings.Contains(r.Reason, "update") {
		t.Errorf("record %+v", r)
	}

	if cut := b.update(t, "a.example"); cut != 1 {
		t.Errorf("%d flows cut, want 1", cut)
	}
	wantReset(t, address)
	wantAlive(t, a)
	if cut := b.update(t); cut != 1 {
		t.Errorf("%d flows cut, want 1", cut)
	}
	wantReset(t, a)
	wantAlive(t, neighbour)
	if cut := b.update(t, "*"); cut != 0 {
		t.Errorf("%d flows cut where there are none", cut)
	}
}

// Who is allowed by the address that the name led to lives on: the sandbox
// could connect there without the proxy.
func TestUpdateToTheAddress(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.serve(t, "a.example:443", func(conn *net.TCPConn) { io.Copy(conn, conn) })
	b := w.box(t, 1, "a.example")
	conn := b.echoes(t, "a.example")
	if cut := b.update(t, "127.0.0.0/8"); cut != 1 { // never reachable, whatever a list says
		t.Errorf("%d flows cut, want 1", cut)
	}
	wantReset(t, conn)
}

// A request in the middle of its answer is cut; a connection that waits for its
// next request is not, but what it holds open to a server goes.
func TestAttack30HTTP(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	idle := make(chan net.Conn, 1)
	w.serve(t, "idle.example:80", func(conn *net.TCPConn) {
		http.ReadRequest(bufio.NewReader(conn))
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		idle <- conn
		io.Copy(io.Discard, conn)
		conn.Close()
		idle <- nil
	})
	w.serve(t, "slow.example:80", func(conn *net.TCPConn) {
		http.ReadRequest(bufio.NewReader(conn))
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
		io.Copy(io.Discard, conn)
	})
	w.site(t, "other.example", hello)
	b := w.box(t, 1, "*.example")

	waiting := b.http(t)
	in := bufio.NewReader(waiting)
	ask := func(host string) int {
		t.Helper()
		fmt.Fprintf(waiting, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, r.Body)
		return r.StatusCode
	}
	if status := ask("idle.example"); status != 200 {
		t.Fatal(status)
	}
	<-idle
	running := b.http(t)
	io.WriteString(running, "GET / HTTP/1.1\r\nHost: slow.example\r\n\r\n")
	if line, err := bufio.NewReader(running).ReadString('f'); err != nil {
		t.Fatalf("%q, %v", line, err)
	}

	if cut := b.update(t, "other.example"); cut != 1 {
		t.Errorf("%d flows cut, want the one that was being answered", cut)
	}
	wantReset(t, running)
	<-idle // the connection to idle.example has ended
	if status := ask("other.example"); status != 200 {
		t.Errorf("the client's own connection: %d", status)
	}
	if status := ask("idle.example"); status != 403 {
		t.Errorf("a name that is not allowed any more: %d", status)
	}
	for _, r := range b.records(t, 4) {
		if r.Name == "slow.example" && (r.Verdict != policy.Deny || r.Generation != 2 || r.Status != 200 || r.BytesDown == 0) {
			t.Errorf("record %+v", r)
		}
	}
}

// A policy that changes while a connection is being made counts.
func TestUpdateDuringDial(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	b := w.box(t, 1, "a.example")
	ln := listen(t)
	w.net.serve("a.example:443", ln.Addr().String())
	hold := make(chan struct{})
	w.net.mu.Lock()
	w.net.connected = func() { <-hold }
	w.net.mu.Unlock()
	conn := b.tls(t)
	conn.Write(clientHello("a.example"))
	server, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if cut := b.update(t, "b.example"); cut != 1 {
		t.Errorf("%d flows cut, want 1", cut)
	}
	close(hold)
	wantReset(t, conn)
	if got, _ := ending(t, server); got != "" {
		t.Errorf("the server was sent %q", got)
	}
	if r := b.records(t, 1)[0]; r.Verdict != policy.Deny || r.Generation != 2 || r.BytesUp != 0 {
		t.Errorf("record %+v", r)
	}
}

// Attack 31: an address that has a new tenant gives it nothing of the last one,
// and the last one nothing of the new.
func TestAttack31RecycledAddress(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.site(t, "old.example", hello)
	w.site(t, "new.example", hello)
	b := w.box(t, 1, "old.example")
	conn := b.http(t)
	in := bufio.NewReader(conn)
	ask := func(host string) *http.Response {
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, r.Body)
		return r
	}
	if r := ask("old.example"); r.StatusCode != 200 {
		t.Fatal(r.Status)
	}
	p, err := policy.Parse(policy.Document{AllowOut: []string{"*"}}, policy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w.tenants.set(b.addr, egress.Tenant{Sandbox: "next", Policy: p})
	for _, host := range []string{"new.example", "old.example"} {
		if r := ask(host); r.StatusCode != 403 {
			t.Errorf("%s: %s", host, r.Status)
		}
	}
	if cut := w.proxy.Forget(b.id); cut != 1 {
		t.Errorf("%d flows cut, want 1", cut)
	}
	wantReset(t, conn)
	if cut := w.proxy.Forget(b.id); cut != 0 {
		t.Errorf("%d flows of a sandbox that is gone", cut)
	}
	if cut := w.proxy.Reevaluate("nobody", egress.Tenant{}); cut != 0 {
		t.Errorf("%d flows of nobody", cut)
	}
}

// Attack 29: without the proxy there is nothing to connect to.
func TestAttack29StoppedProxy(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.serve(t, "a.example:443", func(conn *net.TCPConn) { io.Copy(conn, conn) })
	b := w.box(t, 1, "a.example")
	conn := b.echoes(t, "a.example")
	undecided := b.tls(t)
	w.stop()
	wantReset(t, conn)
	wantReset(t, undecided)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: b.addr.AsSlice()}}
	if conn, err := d.DialContext(t.Context(), "tcp", w.listen443.Addr().String()); err == nil {
		conn.Close()
		t.Error("something still listens")
	}
}
