package proxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
)

// oneTenant has one sandbox at every address.
type oneTenant struct {
	tenant egress.Tenant
	gone   bool
}

func (t *oneTenant) Tenant(netip.Addr) (egress.Tenant, bool) { return t.tenant, !t.gone }

// What is cut between the verdict and the connection is not sent any more, over
// a connection that the flow does not own too.
func TestCutRequestIsNotWritten(t *testing.T) {
	name, err := policy.ParseName("example.com")
	if err != nil {
		t.Fatal(err)
	}
	parse := func(allow ...string) *policy.Policy {
		p, err := policy.Parse(policy.Document{AllowOut: allow}, policy.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for what, meanwhile := range map[string]func(*flow, *visit, *oneTenant){
		"":                  nil,
		"denied":            func(_ *flow, _ *visit, tenants *oneTenant) { tenants.tenant.Policy = parse() },
		"sandbox gone":      func(_ *flow, _ *visit, tenants *oneTenant) { tenants.gone = true },
		"flow cut":          func(f *flow, _ *visit, _ *oneTenant) { f.ended = &verdict{} },
		"visit cut already": func(_ *flow, v *visit, _ *oneTenant) { v.ended = &verdict{} },
	} {
		var asked atomic.Int32
		server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
		transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
		}}
		// The context stays as it is: that it ends is too late, or not noticed.
		ctx := context.Background()
		tenants := &oneTenant{tenant: egress.Tenant{Sandbox: "i1", Policy: parse("example.com")}}
		f := &flow{proxy: &Proxy{tenants: tenants}, box: &box{sandbox: "i1"}, ctx: ctx, cancel: func() {}}
		v := &visit{to: destination{name: name, addr: netip.AddrPortFrom(netip.Addr{}, 80)}, policy: tenants.tenant.Policy, cancel: func() {}}
		x := &exchange{session: &session{flow: f}, verdict: verdict{visit: v}}
		ask := func(ctx context.Context) error {
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://example.com/", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := transport.RoundTrip(r)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
			return err
		}
		if err := ask(ctx); err != nil { // leaves a connection to be used again
			t.Fatal(err)
		}
		if meanwhile != nil {
			meanwhile(f, v, tenants)
		}
		err := ask(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: x.gotConn}))
		transport.CloseIdleConnections()
		server.Close() // and wait
		sent := asked.Load() == 2
		if wanted := meanwhile == nil; sent != wanted || (err == nil) != wanted || x.carried != wanted {
			t.Errorf("%q: sent %v, carried %v, error %v", what, sent, x.carried, err)
		}
	}
}
