// Package requests measures what it costs to look into TLS and set a header,
// beside others who can, in one laboratory. It says how fast; it fails only when
// something does not work.
package requests

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/lab"
)

// serverAddr is where benchHost is.
const serverAddr = "93.184.216.34:443"

// anyPort lets connections from one address share ports.
func anyPort(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	})
}

// client asks for pages by a way, over one version of HTTP.
func (w way) client(b *testing.B, l *lab.Lab, version int) *http.Client {
	b.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(w.ca) {
		b.Fatalf("%s: no certificate in %q", w.name, w.ca)
	}
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (conn net.Conn, err error) {
			if w.proxy == "" {
				addr = serverAddr
			}
			err = l.Node.Do(func() error { conn, err = w.dialer().DialContext(ctx, "tcp4", addr); return err })
			return conn, err
		},
		Proxy: w.throughProxy, TLSClientConfig: &tls.Config{RootCAs: pool}, Protocols: new(http.Protocols),
		MaxIdleConnsPerHost: 2000, DisableCompression: true,
	}
	t.Protocols.SetHTTP1(version == 1)
	t.Protocols.SetHTTP2(version == 2)
	b.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: time.Minute}
}

// fetch asks for a page and returns how long its body was.
func fetch(c *http.Client, path string) (int64, error) {
	r, err := c.Get("https://" + benchHost + path)
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	n, err := io.Copy(io.Discard, r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", r.StatusCode)
	}
	return n, err
}

// checkHeader makes sure that a way sets the header, or that it does not.
func (w way) checkHeader(b *testing.B, c *http.Client) {
	b.Helper()
	r, err := c.Get("https://" + benchHost + "/headers")
	if err != nil {
		b.Fatalf("%s: %v", w.name, err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	sets := w.server != nil && w.source != unseenBox
	if err != nil || strings.Contains(string(body), benchValue) != sets {
		b.Fatalf("%s: %s, %v", w.name, body, err)
	}
}

// versions are the versions of HTTP that all of them speak, and those that only
// some do.
func (w way) versions() []int {
	if w.name == "squid" {
		return []int{1}
	}
	return []int{1, 2}
}

// BenchmarkInjectedRequest measures requests whose header is set, over
// connections that are open already: one after the other, and from 16 clients
// at once.
func BenchmarkInjectedRequest(b *testing.B) {
	l, ways := rivals(b)
	for _, w := range ways {
		for _, version := range w.versions() {
			c := w.client(b, l, version)
			w.checkHeader(b, c)
			b.Run(fmt.Sprintf("one/http%d/%s", version, w.name), func(b *testing.B) { oneByOne(b, c) })
			b.Run(fmt.Sprintf("16/http%d/%s", version, w.name), func(b *testing.B) { atOnce(b, c) })
		}
	}
}

// perRound is how many requests a round of a benchmark has.
const perRound = 20

func oneByOne(b *testing.B, c *http.Client) {
	var took []time.Duration
	for b.Loop() {
		for range perRound {
			began := time.Now()
			if _, err := fetch(c, "/"); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(began))
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

func atOnce(b *testing.B, c *http.Client) {
	var left atomic.Int64
	var clients sync.WaitGroup
	warm := func(requests int64) {
		left.Store(requests)
		for range 16 {
			clients.Go(func() {
				for left.Add(-1) >= 0 {
					if _, err := fetch(c, "/"); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		clients.Wait()
	}
	warm(64)
	requests := int64(b.N) * perRound
	b.ResetTimer()
	warm(requests)
	b.ReportMetric(float64(requests)/b.Elapsed().Seconds(), "requests/s")
}

// BenchmarkLargeAnswer measures one large body.
func BenchmarkLargeAnswer(b *testing.B) {
	const size = 32 << 20
	l, ways := rivals(b)
	for _, w := range ways {
		for _, version := range w.versions() {
			c := w.client(b, l, version)
			b.Run(fmt.Sprintf("http%d/%s", version, w.name), func(b *testing.B) {
				began := time.Now()
				rounds := min(b.N, 4)
				for range rounds {
					if n, err := fetch(c, fmt.Sprint("/bytes/", size)); n != size || err != nil {
						b.Fatal(n, err)
					}
				}
				b.ReportMetric(float64(rounds)*size/1e6/time.Since(began).Seconds(), "MB/s")
			})
		}
	}
}

// BenchmarkInterceptedMemory measures what 1,000 clients cost that have asked
// once and stay connected.
func BenchmarkInterceptedMemory(b *testing.B) {
	l, ways := rivals(b)
	for _, w := range ways {
		if w.server == nil {
			continue
		}
		kib := w.memory(b, l) // once: what has grown does not shrink again
		b.Run(w.name, func(b *testing.B) { b.ReportMetric(kib, "KiB/connection") })
	}
}

// memory returns how much a proxy grows by each of 1,000 connections.
func (w way) memory(b *testing.B, l *lab.Lab) float64 {
	b.Helper()
	const clients = 1000
	c := w.client(b, l, 1)
	if _, err := fetch(c, "/"); err != nil {
		b.Fatal(err)
	}
	before := resident(b, w.server.PID)
	bodies := make(chan io.Closer, clients)
	var open sync.WaitGroup
	for range clients {
		open.Go(func() {
			// Until its body is read a connection serves nobody else.
			r, err := c.Get("https://" + benchHost + "/")
			if err != nil {
				b.Error(err)
				return
			}
			bodies <- r.Body
		})
	}
	open.Wait()
	grown := resident(b, w.server.PID) - before
	close(bodies)
	for body := range bodies {
		_ = body.Close() // was not read
	}
	return float64(grown) / clients / 1024
}

// resident returns how much memory a process has, in bytes.
func resident(b *testing.B, pid int) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kib, err := strconv.ParseInt(strings.TrimSpace(strings.SplitN(rest, "kB", 2)[0]), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return kib << 10
}
