package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/secret"
)

// dialPause is how long to wait before dialling a guest again that is not
// listening yet. It is short because a create waits for it.
const dialPause = time.Millisecond

// guestAnswerLimit bounds what is read of a guest's answer: a sandbox may run
// anything on the daemon's port.
const guestAnswerLimit = 64 << 10

// GuestSetup is what the guest daemons of all sandboxes are told before there is
// a sandbox. The nameserver is E2B's choice, on which images and users rely;
// caBundle holds PEM certificates every sandbox shall trust and may be empty, and
// roots those for sandboxes that know none.
func GuestSetup(caBundle, roots string) api.GuestSetup {
	return api.GuestSetup{Hostname: hostname, Nameservers: []string{"8.8.8.8"}, CABundle: caBundle, Roots: roots}
}

// guestClient speaks to the daemons inside sandboxes over their own links.
type guestClient struct {
	http *http.Client
	port int
}

func newGuestClient() *guestClient {
	return &guestClient{port: api.GuestPort, http: &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DialContext:       dialGuest,
			DisableKeepAlives: true, // a slot's address has another tenant tomorrow
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func (g *guestClient) close() { g.http.CloseIdleConnections() }

// dialGuest dials until the daemon listens or ctx ends.
func dialGuest(ctx context.Context, network, addr string) (net.Conn, error) {
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err == nil || !errors.Is(err, syscall.ECONNREFUSED) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-time.After(dialPause):
		}
	}
}

// init tells a fresh guest what it is. It waits for the daemon to come up.
func (g *guestClient) init(ctx context.Context, addr netip.Addr, what api.GuestInit) error {
	body, err := json.Marshal(what)
	if err != nil {
		return err
	}
	answer, err := g.call(ctx, http.MethodPost, addr, "/init", body, secret.String{})
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusNoContent {
		return fmt.Errorf("guest refused its configuration: %s", answer.Status)
	}
	return nil
}

// metrics is the guest's own reading, as it sends it.
type metrics struct {
	Timestamp int64   `json:"ts"` // unix seconds
	CPUs      int     `json:"cpu_count"`
	CPUUsed   float64 `json:"cpu_used_pct"`
	MemTotal  int64   `json:"mem_total"`
	MemUsed   int64   `json:"mem_used"`
	MemCache  int64   `json:"mem_cache"`
	DiskUsed  int64   `json:"disk_used"`
	DiskTotal int64   `json:"disk_total"`
}

func (g *guestClient) sample(ctx context.Context, addr netip.Addr, token secret.String) (sandbox.Sample, error) {
	answer, err := g.call(ctx, http.MethodGet, addr, "/metrics", nil, token)
	if err != nil {
		return sandbox.Sample{}, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return sandbox.Sample{}, fmt.Errorf("guest answered %s", answer.Status)
	}
	var m metrics
	if err := json.NewDecoder(io.LimitReader(answer.Body, guestAnswerLimit)).Decode(&m); err != nil {
		return sandbox.Sample{}, fmt.Errorf("guest metrics: %w", err)
	}
	return sandbox.Sample{
		// The server's clock, not the sandbox's: its root may have set it.
		At:   time.Now().UTC(),
		CPUs: m.CPUs, CPUUsedPct: m.CPUUsed,
		MemUsed: m.MemUsed, MemTotal: m.MemTotal, MemCache: m.MemCache,
		DiskUsed: m.DiskUsed, DiskTotal: m.DiskTotal,
	}, nil
}

func (g *guestClient) call(ctx context.Context, method string, addr netip.Addr, path string, body []byte, token secret.String) (*http.Response, error) {
	url := "http://" + net.JoinHostPort(addr.String(), strconv.Itoa(g.port)) + path
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if !token.Empty() {
		req.Header.Set("X-Access-Token", token.Reveal())
	}
	return g.http.Do(req)
}

// withTemplateEnv merges a template's "NAME=value" defaults under the caller's
// variables.
func withTemplateEnv(defaults []string, env map[string]string) map[string]string {
	merged := make(map[string]string, len(defaults)+len(env))
	for _, d := range defaults {
		if name, value, ok := strings.Cut(d, "="); ok {
			merged[name] = value
		}
	}
	for name, value := range env {
		merged[name] = value
	}
	return merged
}
