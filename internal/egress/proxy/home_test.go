package proxy_test

import (
	"net"
	"testing"

	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/policy"
)

const ourURL = "3000-abc.home.test"

// A public URL of this server is dialled inwards, on behalf of the sandbox, under
// every policy that allows its name; a proxy on the way out has no part in it.
func TestPublicURLsGoHome(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.original, _ = policy.HomeAddrs()
	w.site(t, ourURL, hello)
	upstream := &policy.EgressProxy{Address: "1.2.3.4:1080"}
	for n, doc := range []policy.Document{
		{Default: policy.Allow}, {AllowOut: []string{"*.home.test"}}, {Default: policy.Allow, EgressProxy: upstream},
	} {
		b := w.box(t, byte(n+1))
		b.publishDocument(t, doc)
		if status, body := get(t, b.client(t), "http://"+ourURL+"/"); status != 200 || body != "hello from "+ourURL {
			t.Errorf("%+v: %d %s", doc, status, body)
		}
		if ways := w.net.through(); ways[len(ways)-1] != "home at 80 for "+b.addr.String() {
			t.Errorf("%+v: dialled %q", doc, ways)
		}
	}
	b := w.box(t, 9, "example.com")
	if status, body := get(t, b.client(t), "http://"+ourURL+"/"); status != 403 {
		t.Errorf("one that is not allowed: %d %s", status, body)
	}
}

// A connection home lives as long as policies allow its name, by whatever entry.
func TestPublicURLsUnderUpdates(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.original, _ = policy.HomeAddrs()
	arrived := make(chan net.Conn, 1)
	w.serve(t, ourURL+":443", func(conn *net.TCPConn) {
		arrived <- conn
		_, _ = conn.Read(make([]byte, 4096))
		_, _ = conn.Read(make([]byte, 1)) // until the end
	})
	b := w.box(t, 1)
	b.publishDocument(t, policy.Document{Default: policy.Allow})
	conn := b.tls(t)
	if _, err := conn.Write(clientHello(ourURL)); err != nil {
		t.Fatal(err)
	}
	<-arrived
	for _, doc := range []policy.Document{{AllowOut: []string{"*.home.test"}}, {Default: policy.Allow, DenyOut: []string{"8.8.8.8"}}} {
		if cut := b.change(t, doc); cut != 0 {
			t.Errorf("%+v cuts %d flows", doc, cut)
		}
	}
	if cut := b.change(t, policy.Document{AllowOut: []string{"example.com"}}); cut != 1 {
		t.Errorf("a policy that denies it cuts %d flows", cut)
	}
	wantReset(t, conn)
}
