package app

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/moat-sandbox/moat/internal/ingress"
)

// metrics tells Prometheus what the server counts. It implements
// prometheus.Collector: everything is read when it is asked for.
type metrics struct {
	handler   http.Handler
	sandboxes func() int
	doors     []*ingress.Ingress // set before anything is served
}

func newMetrics(sandboxes func() int) *metrics {
	m := &metrics{sandboxes: sandboxes}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.handler = promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	return m
}

const metricsPath = "/metrics"

// beside serves the metrics beside another handler.
func (m *metrics) beside(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == metricsPath && r.Method == http.MethodGet {
			m.handler.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}

// server serves the metrics and nothing else.
func (m *metrics) server() server {
	return &http.Server{
		Handler:           m.beside(http.NotFoundHandler()),
		ReadHeaderTimeout: 10 * time.Second,
		WriteTimeout:      time.Minute,
	}
}

// bySandbox is the label of what is counted for each sandbox.
const bySandbox, byCode = "sandbox", "code"

// What is told. Those for single sandboxes end with the sandbox, so they do not
// add up to the totals.
var (
	sandboxesLive = describe("moat_sandboxes", "Sandboxes that live.")
	connections   = describe("moat_ingress_connections", "Connections that clients have open.")
	refused       = describe("moat_ingress_connections_refused_total", "Connections beyond the limit.")

	ofAll = tallyDescs{
		requests: describe("moat_ingress_requests_total", "Requests for sandboxes, also for unknown ones."),
		inFlight: describe("moat_ingress_requests_in_flight", "Requests and upgraded connections that sandboxes have open."),
		received: describe("moat_ingress_received_bytes_total", "Bytes of bodies and upgraded connections that went to sandboxes."),
		sent:     describe("moat_ingress_sent_bytes_total", "Bytes of bodies and upgraded connections that came from sandboxes."),
		failures: describe("moat_ingress_failures_total", "Answers given in place of a sandbox, by error_code.", byCode),
	}
	ofOne = tallyDescs{
		requests: describe("moat_sandbox_requests_total", "Requests for a sandbox.", bySandbox),
		inFlight: describe("moat_sandbox_requests_in_flight", "Requests and upgraded connections that a sandbox has open.", bySandbox),
		received: describe("moat_sandbox_received_bytes_total", "Bytes of bodies and upgraded connections that went to a sandbox.", bySandbox),
		sent:     describe("moat_sandbox_sent_bytes_total", "Bytes of bodies and upgraded connections that came from a sandbox.", bySandbox),
		failures: describe("moat_sandbox_failures_total", "Answers given in place of a sandbox, by error_code.", bySandbox, byCode),
	}
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// tallyDescs describe an ingress.Counts.
type tallyDescs struct{ requests, inFlight, received, sent, failures *prometheus.Desc }

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sandboxesLive, connections, refused} {
		out <- d
	}
	for _, d := range []tallyDescs{ofAll, ofOne} {
		out <- d.requests
		out <- d.inFlight
		out <- d.received
		out <- d.sent
		out <- d.failures
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	counter, gauge := prometheus.CounterValue, prometheus.GaugeValue
	sum := m.sum()
	out <- prometheus.MustNewConstMetric(sandboxesLive, gauge, float64(m.sandboxes()))
	out <- prometheus.MustNewConstMetric(connections, gauge, float64(sum.Connections))
	out <- prometheus.MustNewConstMetric(refused, counter, float64(sum.ConnectionsRefused))
	ofAll.collect(out, sum.Total)
	for id, counts := range sum.Sandboxes {
		ofOne.collect(out, counts, id)
	}
}

func (d tallyDescs) collect(out chan<- prometheus.Metric, c ingress.Counts, labels ...string) {
	counter, gauge := prometheus.CounterValue, prometheus.GaugeValue
	out <- prometheus.MustNewConstMetric(d.requests, counter, float64(c.Requests), labels...)
	out <- prometheus.MustNewConstMetric(d.inFlight, gauge, float64(c.InFlight), labels...)
	out <- prometheus.MustNewConstMetric(d.received, counter, float64(c.BytesIn), labels...)
	out <- prometheus.MustNewConstMetric(d.sent, counter, float64(c.BytesOut), labels...)
	for code, n := range c.Failures {
		out <- prometheus.MustNewConstMetric(d.failures, counter, float64(n), append(labels, code)...)
	}
}

// sum adds up what the doors have counted.
func (m *metrics) sum() ingress.Metrics {
	sum := ingress.Metrics{Sandboxes: make(map[string]ingress.Counts)}
	for _, door := range m.doors {
		one := door.Metrics()
		sum.Connections += one.Connections
		sum.ConnectionsRefused += one.ConnectionsRefused
		sum.Total = sum.Total.Plus(one.Total)
		for id, counts := range one.Sandboxes {
			sum.Sandboxes[id] = sum.Sandboxes[id].Plus(counts)
		}
	}
	return sum
}
