package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/test/harness"
)

// TestVisitsAreToldAndCounted: every request for a sandbox is in its log with
// the reason and without credentials, and counted in the metrics.
func TestVisitsAreToldAndCounted(t *testing.T) {
	s := harness.Start(t, harness.Options{Args: []string{"--metrics", "127.0.0.1:9628", "--log-level", "debug"}})
	box := withProber(t, s, api.NewSandbox{Network: private()})
	box.Start(t, prober+" serve 8080")
	token := *box.Made.TrafficAccessToken
	link, err := s.Client().Link(t.Context(), box.ID, 8080, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	_, query, _ := strings.Cut(link.URL, "?")
	url := publicURL(box, "https", 8080, "/x?"+query+"x&key="+token)
	visit(t, s, url, nil)
	visit(t, s, publicURL(box, "https", 8080, "/x?key="+token), map[string]string{tokenHeader: "wrong" + token})
	visit(t, s, publicURL(box, "http", 8080, "/y"), map[string]string{tokenHeader: token})
	visit(t, s, publicURL(box, "https", 8081, "/z"), map[string]string{tokenHeader: token})

	type seen struct {
		verdict, rule, path string
		port                uint16
		status              int
	}
	want := []seen{
		{"deny", "link_invalid", "/x", 8080, 403},
		{"deny", "traffic_token_invalid", "/x", 8080, 403},
		{"allow", "traffic_token", "/y", 8080, 200},
		{"allow", "traffic_token", "/z", 8081, 502},
	}
	page, err := s.Client().Flows(t.Context(), box.ID, client.FlowFilter{Direction: "in"})
	if err != nil {
		t.Fatal(err)
	}
	var got []seen
	for _, f := range page.Flows {
		if f.Port != api.GuestPort {
			got = append(got, seen{f.Verdict, f.Rule, f.Path, f.Port, f.Status})
			if f.Address == "" || f.Protocol != "http" || f.Method != "GET" || f.Reason == "" {
				t.Errorf("record %+v", f)
			}
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("recorded %v\nwant     %v", got, want)
	}
	if !strings.HasSuffix(page.Flows[len(page.Flows)-1].Reason, "it ended with port_closed") {
		t.Errorf("the closed port: %+v", page.Flows[len(page.Flows)-1])
	}
	expectMetrics(t, s, box.ID)
	s.Stop() // writes the log's file to its end
	expectNowhere(t, s, token, strings.TrimPrefix(query, "moat-link="))
}

// expectMetrics looks where Prometheus and the operator look, and where nobody
// shall find anything.
func expectMetrics(t *testing.T, s *harness.Server, id string) {
	t.Helper()
	socket := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", filepath.Join(s.DataDir, "moat.sock"))
	}}}
	defer socket.CloseIdleConnections()
	for _, from := range []*http.Client{socket, s.HTTP()} {
		answer, err := from.Get("http://127.0.0.1:9628/metrics")
		if err != nil {
			t.Fatal(err)
		}
		told, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != 200 {
			t.Fatalf("%s, %v", answer.Status, err)
		}
		for _, line := range []string{
			`moat_sandboxes 1`,
			`moat_sandbox_failures_total{code="link_invalid",sandbox="` + id + `"} 1`,
			`moat_sandbox_failures_total{code="port_closed",sandbox="` + id + `"} 1`,
			`moat_sandbox_failures_total{code="traffic_token_invalid",sandbox="` + id + `"} 1`,
		} {
			if !strings.Contains(string(told), "\n"+line+"\n") {
				t.Errorf("%q is missing in\n%s", line, told)
			}
		}
	}
	if status, _ := visit(t, s, harness.URL+"/metrics", nil); status != 404 {
		t.Errorf("everybody is told the metrics: %d", status)
	}
	if status, _ := visit(t, s, "http://127.0.0.1:9628/sandboxes", nil); status != 404 {
		t.Errorf("the API is where the metrics are: %d", status)
	}
}

// TestIngressLimits: the operator's limits hold.
func TestIngressLimits(t *testing.T) {
	s := harness.Start(t, harness.Options{Args: []string{
		"--max-unknown", "3", "--max-header", "8192", "--header-timeout", "1s", "--max-sandbox-requests", "1", "--refuse-preflight",
	}})
	box := withProber(t, s, api.NewSandbox{Network: private()})
	box.Start(t, prober+" serve 8080")
	home := publicURL(box, "http", 8080, "/")

	unknown := strings.Replace(home, box.ID, "i"+strings.Repeat("0", 20), 1)
	for i := range 4 {
		status, body := visit(t, s, unknown, nil)
		if want := map[bool]int{true: 502, false: 429}[i < 3]; status != want {
			t.Errorf("unknown sandbox, request %d: %d %s", i, status, body)
		}
	}
	if status, _ := visit(t, s, home, map[string]string{"X-Long": strings.Repeat("x", 20_000), tokenHeader: *box.Made.TrafficAccessToken}); status != 431 {
		t.Errorf("too much header: %d", status)
	}
	conn, err := s.Lab.Node.Dial(t.Context(), "tcp", "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	fmt.Fprint(conn, "GET / HTTP/1.1\r\n")
	if _, err := io.ReadAll(conn); time.Since(began) < 500*time.Millisecond || time.Since(began) > 10*time.Second {
		t.Errorf("a slow header was cut after %v, %v", time.Since(began), err)
	}
	req, err := http.NewRequestWithContext(t.Context(), "OPTIONS", home, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Origin": {"https://a.test"}, "Access-Control-Request-Method": {"GET"}}
	answer, err := s.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != 403 {
		t.Errorf("a preflight: %s", answer.Status)
	}

	held, err := http.NewRequestWithContext(t.Context(), "GET", publicURL(box, "http", 8080, "/events"), nil)
	if err != nil {
		t.Fatal(err)
	}
	held.Header.Set(tokenHeader, *box.Made.TrafficAccessToken)
	stream, err := s.HTTP().Do(held)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	if status, body := visit(t, s, home, map[string]string{tokenHeader: *box.Made.TrafficAccessToken}); status != 429 || !strings.Contains(body, "too_many_connections") {
		t.Errorf("beside the one request that may be open: %d %s", status, body)
	}
}
