package app

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/ingress"
)

// one is a lookup that knows one sandbox, where nothing listens.
type one struct{ ingress.Target }

func (o one) Sandbox(id string) (ingress.Target, bool) { return o.Target, id == o.ID }

func TestMetrics(t *testing.T) {
	id := "i" + strings.Repeat("a", 20)
	api := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "the API") })
	m := newMetrics(func() int { return 7 })
	in, err := openDoors(ingress.Config{
		Domain: "moat.test", Logger: slog.New(slog.DiscardHandler),
		Sandboxes: one{ingress.Target{ID: id, Addr: netip.MustParseAddr("127.0.0.1"), Done: make(chan struct{})}},
	}, IngressLimits{}, api, m.beside(api))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.close() })
	m.doors = in.all()

	ask := func(h http.Handler, url string) string {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", url, nil))
		return w.Body.String()
	}
	for _, door := range m.doors {
		ask(door, "http://80-"+id+".moat.test/")                       // private, and no token
		ask(door, "http://80-i"+strings.Repeat("b", 20)+".moat.test/") // unknown
	}
	told := ask(in.operator, "http://localhost/metrics")
	for _, line := range []string{
		"moat_sandboxes 7",
		"moat_ingress_connections 0",
		"moat_ingress_requests_total 6",
		`moat_ingress_failures_total{code="sandbox_not_found"} 3`,
		`moat_ingress_failures_total{code="traffic_token_missing"} 3`,
		`moat_sandbox_requests_total{sandbox="` + id + `"} 3`,
		`moat_sandbox_failures_total{code="traffic_token_missing",sandbox="` + id + `"} 3`,
		"go_goroutines ",
		"process_open_fds ",
	} {
		if !strings.Contains(told, "\n"+line) {
			t.Errorf("%q is missing in\n%s", line, told)
		}
	}
	if told := ask(in.public, "http://localhost/metrics"); told != "the API" {
		t.Errorf("everybody is told %s", told)
	}
}
