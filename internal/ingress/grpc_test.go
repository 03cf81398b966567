package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

type text = wrapperspb.StringValue

// serveGRPC runs an app that speaks nothing but HTTP/2 without TLS.
func (w *world) serveGRPC(procedure string, h http.Handler) *box {
	w.t.Helper()
	b := newBox(0)
	ln := listen(w.t, netip.AddrPortFrom(b.Addr, 0).String())
	b.port = uint16(ln.Addr().(*net.TCPAddr).Port)
	mux := http.NewServeMux()
	mux.Handle(procedure, h)
	srv := &http.Server{Handler: mux, Protocols: new(http.Protocols), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	srv.Protocols.SetUnencryptedHTTP2(true)
	go srv.Serve(ln)
	w.t.Cleanup(func() { srv.Close() })
	w.boxes.put(b)
	return b
}

func TestGRPC(t *testing.T) {
	w := newWorld(t)
	const procedure = "/test.Echo/Talk"
	b := w.serveGRPC(procedure, connect.NewBidiStreamHandler(procedure,
		func(_ context.Context, s *connect.BidiStream[text, text]) error {
			for {
				m, err := s.Receive()
				switch {
				case errors.Is(err, io.EOF):
					return connect.NewError(connect.CodeDataLoss, errors.New("the end"))
				case err != nil:
					return err
				}
				if err := s.Send(&text{Value: strings.ToUpper(m.Value)}); err != nil {
					return err
				}
			}
		}))
	for _, name := range []string{"h2", "h2c"} {
		t.Run(name, func(t *testing.T) {
			c := w.client(name)
			talk := connect.NewClient[text, text](c.Client, c.scheme+"://"+b.host()+procedure, connect.WithGRPC()).CallBidiStream(context.Background())
			within(t, 30*time.Second, "talk", func() {
				for i := range 5 {
					if err := talk.Send(&text{Value: fmt.Sprintf("hello %d", i)}); err != nil {
						t.Fatal(err)
					}
					if m, err := talk.Receive(); err != nil || m.Value != fmt.Sprintf("HELLO %d", i) {
						t.Fatalf("got %v, %v", m, err)
					}
				}
				talk.CloseRequest()
				// The status is in the trailers.
				if _, err := talk.Receive(); connect.CodeOf(err) != connect.CodeDataLoss || !strings.Contains(err.Error(), "the end") {
					t.Errorf("ended with %v", err)
				}
			})
			again := connect.NewClient[text, text](c.Client, c.scheme+"://"+b.host()+procedure, connect.WithGRPC()).CallBidiStream(context.Background())
			if err := again.Send(&text{Value: "x"}); err != nil {
				t.Fatal(err)
			}
			if _, err := again.Receive(); err != nil {
				t.Fatal(err)
			}
			if name == "h2c" {
				w.ended(b)
				within(t, 30*time.Second, "the end", func() {
					if _, err := again.Receive(); err == nil || errors.Is(err, io.EOF) {
						t.Errorf("got %v", err)
					}
				})
			}
		})
	}
}

func TestIsGRPC(t *testing.T) {
	for kind, want := range map[string]bool{
		"application/grpc": true, "application/grpc+proto": true, "application/grpc;x=y": true,
		"application/grpc-web": false, "application/grpc-web+proto": false, "application/json": false, "": false,
	} {
		r := &http.Request{ProtoMajor: 2, Header: http.Header{"Content-Type": {kind}}}
		if got := isGRPC(r); got != want {
			t.Errorf("%q over HTTP/2: %v", kind, got)
		}
		if r.ProtoMajor = 1; isGRPC(r) {
			t.Errorf("%q over HTTP/1", kind)
		}
	}
}
