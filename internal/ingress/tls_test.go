package ingress

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"testing"
)

// serveTLS runs an app that speaks nothing but TLS.
func (w *world) serveTLS(b *box, app http.Handler) *box {
	w.t.Helper()
	ln := listen(w.t, netip.AddrPortFrom(b.Addr, b.port).String())
	b.port = uint16(ln.Addr().(*net.TCPAddr).Port)
	srv := &http.Server{
		Handler: app, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{testCertificate(w.t)}},
	}
	go srv.ServeTLS(ln, "", "")
	w.t.Cleanup(func() { srv.Close() })
	b.HTTPSPorts = append(b.HTTPSPorts, b.port)
	w.boxes.put(b)
	return b
}

func TestHTTPSPorts(t *testing.T) {
	w := newWorld(t)
	app := w.serveTLS(newBox(0), http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			echoWebSocket(rw, r)
			return
		}
		fmt.Fprintf(rw, "%s %v %s %s", r.Proto, r.TLS != nil, r.Host, r.Header.Get("X-Forwarded-Proto"))
	}))
	grpc := w.serveTLS(newBox(0), http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/grpc")
		io.WriteString(rw, r.Proto)
	}))
	plain := w.serve(tell)
	wrong := *plain
	wrong.HTTPSPorts = []uint16{plain.port}
	guest := newBox(49983)
	guest.HTTPSPorts = []uint16{49983}
	w.serveOn(guest, tell)
	w.each(t, func(t *testing.T, c client) {
		if got, want := readAll(t, c.get(t, app.host(), "/").Body), "HTTP/1.1 true "+app.host()+" "+c.scheme; got != want {
			t.Errorf("app saw %s, want %s", got, want)
		}
		if s := ask(t, c, c.request(t, "GET", guest.host(), "/", nil)); s.Method != "GET" {
			t.Errorf("guest: got %+v", s)
		}
		w.boxes.put(plain)
		ask(t, c, c.request(t, "GET", plain.host(), "/", nil))
		w.boxes.put(&wrong)
		wantFailure(t, c.get(t, plain.host(), "/"), 502, "upstream_tls")
		if c.proto == 2 {
			req := c.request(t, "POST", grpc.host(), "/", nil)
			req.Header.Set("Content-Type", "application/grpc")
			if got := readAll(t, c.do(t, req).Body); got != "HTTP/2.0" {
				t.Errorf("gRPC app was spoken to in %s", got)
			}
		}
	})
	conn := dialWebSocket(t, w.client("h1"), app)
	w.ended(app)
	if _, _, err := conn.Read(t.Context()); !isReset(err) {
		t.Errorf("web socket over TLS ended with %v", err)
	}
	eventually(t, "connections are gone", func() bool { return len(w.in.Metrics().Sandboxes) == 3 })
}
