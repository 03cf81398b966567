package proxy

import (
	"context"
	"crypto/tls"
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
	"github.com/moat-sandbox/moat/internal/secret"
)

// oneTenant has one sandbox at every address.
type oneTenant struct {
	tenant egress.Tenant
	gone   bool
}

func (t *oneTenant) Tenant(netip.Addr) (egress.Tenant, bool) { return t.tenant, !t.gone }

// cutting is a request that is about to be written, over a connection to a
// server that is there already.
type cutting struct {
	name    policy.Name
	tenants *oneTenant
	flow    *flow
	verdict verdict

	server    *httptest.Server
	asked     atomic.Int32
	transport *http.Transport
}

// newCutting has the request allowed by a policy that sets X-Key to a value.
func newCutting(t *testing.T, protocol string) *cutting {
	t.Helper()
	c := &cutting{tenants: &oneTenant{tenant: egress.Tenant{Sandbox: "i1", Policy: setting(t, "one")}}}
	var err error
	if c.name, err = policy.ParseName("example.com"); err != nil {
		t.Fatal(err)
	}
	c.flow = &flow{
		proxy: &Proxy{tenants: c.tenants}, box: &box{sandbox: "i1"}, client: new(net.TCPConn), ctx: context.Background(), cancel: func() {},
		original: netip.MustParseAddrPort("45.60.70.80:443"), decided: true,
	}
	// Nothing comes of the cancelling: it is too late, or not noticed.
	c.verdict = c.flow.judge(question{name: c.name, cancel: func() {}, request: &policy.Request{
		Scheme: schemeHTTPS, Method: http.MethodPost, Name: c.name, Port: 443, Path: "/", SNI: c.name,
	}})
	if !c.verdict.allow {
		t.Fatal(c.verdict.reason)
	}
	c.server = httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { c.asked.Add(1) }))
	c.server.EnableHTTP2 = true
	c.server.StartTLS()
	t.Cleanup(c.server.Close)
	config := c.server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	config.NextProtos, config.ServerName = []string{protocol}, c.name.String()
	c.transport = newTransport()
	c.transport.Protocols.SetHTTP1(protocol == http1)
	c.transport.Protocols.SetHTTP2(protocol == http2)
	c.transport.DialTLSContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		tcp, err := new(net.Dialer).DialContext(ctx, "tcp", c.server.Listener.Addr().String())
		if err != nil {
			return nil, err
		}
		conn := tls.Client(&line{TCPConn: tcp.(*net.TCPConn)}, config)
		return conn, conn.HandshakeContext(ctx)
	}
	t.Cleanup(c.transport.CloseIdleConnections)
	return c
}

// setting is a policy that sets a header in requests to example.com.
func setting(t *testing.T, value string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse(policy.Document{AllowOut: []string{"example.com"}, Rules: policy.Rules{Hosts: []policy.HostRule{
		{Host: "example.com", Headers: []policy.Header{{Name: "X-Key", Value: secret.New(value)}}},
	}}}, policy.Options{Rules: true})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (c *cutting) ask(ctx context.Context, t *testing.T, trace *httptrace.ClientTrace) error {
	t.Helper()
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodPost, "https://example.com/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := c.transport.RoundTrip(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}

// cut does what an update does that denies the visit.
func (c *cutting) cut(v *visit) {
	c.flow.box.mu.Lock()
	defer c.flow.box.mu.Unlock()
	c.flow.end(v, verdict{reason: "cut"})
}

// end does what the end of the sandbox does.
func (c *cutting) end(*visit) {
	c.flow.box.mu.Lock()
	defer c.flow.box.mu.Unlock()
	c.flow.cut(verdict{reason: "ended"})
}

// What is cut before it is written is not sent any more, whenever that falls,
// over a connection that the flow does not own too.
func TestCutRequestIsNotWritten(t *testing.T) {
	denied, err := policy.Parse(policy.Document{}, policy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for what, meanwhile := range map[string]struct {
		before, after func(*cutting, *visit) // it got its connection
		sent          bool
	}{
		"nothing":           {sent: true},
		"the same again":    {before: func(c *cutting, _ *visit) { c.tenants.tenant.Policy = setting(t, "one") }, sent: true},
		"denied":            {before: func(c *cutting, _ *visit) { c.tenants.tenant.Policy = denied }},
		"another header":    {before: func(c *cutting, _ *visit) { c.tenants.tenant.Policy = setting(t, "two") }},
		"sandbox gone":      {before: func(c *cutting, _ *visit) { c.tenants.gone = true }},
		"flow cut":          {before: func(c *cutting, _ *visit) { c.flow.ended = &verdict{} }},
		"visit cut already": {before: func(_ *cutting, v *visit) { v.ended = &verdict{} }},
		"visit cut late":    {after: (*cutting).cut},
		"flow cut late":     {after: (*cutting).end},
	} {
		for _, protocol := range []string{http1, http2} {
			c := newCutting(t, protocol)
			if err := c.ask(t.Context(), t, &httptrace.ClientTrace{}); err != nil { // leaves a connection to be used again
				t.Fatal(err)
			}
			v, gotConn := c.verdict.visit, (&exchange{session: &session{flow: c.flow}, verdict: c.verdict}).gotConn
			if protocol == http2 {
				gotConn = (&stream{flow: c.flow, verdict: c.verdict}).gotConn
			}
			if meanwhile.before != nil {
				meanwhile.before(c, v)
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			if meanwhile.after == nil {
				v.cancel = cancel
			}
			err := c.ask(ctx, t, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
				gotConn(info)
				if meanwhile.after != nil {
					meanwhile.after(c, v)
					v.cancel = cancel // or it would be tried over another connection
				}
			}})
			c.transport.CloseIdleConnections()
			c.server.Close() // and wait
			if sent := c.asked.Load() == 2; sent != meanwhile.sent || (err == nil) != meanwhile.sent {
				t.Errorf("%s, %s: sent %v, error %v", what, protocol, sent, err)
			}
		}
	}
}
