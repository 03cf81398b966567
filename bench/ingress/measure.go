package main

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/bench/peers"
)

// cell is one kind of load.
type cell struct {
	conns int
	big   bool // 1 MiB instead of some bytes
	fresh bool // a connection for each request
	tls   bool
}

func (c cell) String() string {
	body, conn, scheme := "small", "kept", "plain"
	if c.big {
		body = "1 MiB"
	}
	if c.fresh {
		conn = "new"
	}
	if c.tls {
		scheme = "TLS"
	}
	return fmt.Sprintf("%s, %s, %s connections, %d", scheme, body, conn, c.conns)
}

func cells() (all []cell) {
	for _, tls := range []bool{false, true} {
		for _, kind := range []cell{{}, {fresh: true}, {big: true}} {
			for _, conns := range []int{1, 64, 512} {
				kind.tls, kind.conns = tls, conns
				all = append(all, kind)
			}
		}
	}
	return all
}

// result is what one peer did with one cell.
type result struct {
	perSecond float64
	p50, p99  string
	cpu       time.Duration // of the peer, for each request
	failed    string
}

// measure runs every cell against every peer.
func measure(ctx context.Context, each time.Duration, only string) error {
	if _, err := exec.LookPath("wrk"); err != nil {
		return errors.New("wrk is not installed: apt-get install wrk")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "moat-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := writeFiles(dir); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var running []*peers.Running
	defer func() { // all at once, then wait for each
		cancel()
		for _, r := range running {
			r.Stop()
		}
	}()
	upstream, err := app(dir).Start(ctx, peers.Machine{})
	if err != nil {
		return fmt.Errorf("nothing can be measured without an upstream: %w", err)
	}
	running = append(running, upstream)
	var present []peer
	groups := make(map[string]int) // of processes, by peer
	for _, p := range rivals(dir, self) {
		r, err := p.Start(ctx, peers.Machine{})
		switch {
		case errors.Is(err, peers.ErrMissing):
			fmt.Printf("NOT MEASURED: %v\n\n", err)
		case err != nil:
			return err
		default:
			running, present, groups[p.Name] = append(running, r), append(present, p), r.PID
		}
	}
	return tabulate(ctx, present, groups, each, only)
}

func tabulate(ctx context.Context, present []peer, groups map[string]int, each time.Duration, only string) error {
	fmt.Println("| load | server | requests/s | of nginx | p50 | p99 | CPU µs/request |")
	fmt.Println("|---|---|---|---|---|---|---|")
	for _, c := range cells() {
		if !strings.Contains(c.String(), only) {
			continue
		}
		results, err := rounds(ctx, present, groups, c, each)
		if err != nil {
			return err
		}
		nginx := results["nginx"].perSecond
		for _, p := range present {
			r := results[p.Name]
			fmt.Printf("| %s | %s | %.0f | %.2f | %s | %s | %.1f %s|\n", c, p.Name, r.perSecond, r.perSecond/nginx, r.p50, r.p99, float64(r.cpu.Nanoseconds())/1000, r.failed)
		}
	}
	return nil
}

// turns is how often each peer is measured with a cell, one after the other and
// then again: what else the machine does should meet all alike.
const turns = 3

// rounds returns the median turn of each peer.
func rounds(ctx context.Context, present []peer, groups map[string]int, c cell, each time.Duration) (map[string]result, error) {
	all := make(map[string][]result)
	for range turns {
		for _, p := range present {
			r, err := p.run(ctx, c, each, groups[p.Name])
			if err != nil {
				return nil, err
			}
			all[p.Name] = append(all[p.Name], r)
		}
	}
	medians := make(map[string]result)
	for name, results := range all {
		slices.SortFunc(results, func(a, b result) int { return cmp.Compare(a.perSecond, b.perSecond) })
		medians[name] = results[turns/2]
	}
	return medians, nil
}

var (
	requests = regexp.MustCompile(`(\d+) requests in`)
	rate     = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
	median   = regexp.MustCompile(`(?m)^\s+50%\s+(\S+)`)
	tail     = regexp.MustCompile(`(?m)^\s+99%\s+(\S+)`)
	trouble  = regexp.MustCompile(`(Non-2xx.*|Socket errors.*)`)
)

func (p peer) run(ctx context.Context, c cell, each time.Duration, group int) (result, error) {
	target := "http://localhost:" + p.plain
	if c.tls {
		target = "https://localhost:" + p.secure
	}
	if c.big {
		target += "/big"
	}
	args := []string{"-t1", fmt.Sprintf("-c%d", c.conns), fmt.Sprintf("-d%ds", int(each/time.Second)), "--latency",
		"-H", "Host: " + host, "-H", "e2b-traffic-access-token: " + token}
	if c.fresh {
		args = append(args, "-H", "Connection: close")
	}
	before := cpuOf(group)
	out, err := exec.CommandContext(ctx, "wrk", append(args, target)...).CombinedOutput()
	if err != nil {
		return result{}, fmt.Errorf("wrk %s: %w: %s", p.Name, err, out)
	}
	used := cpuOf(group) - before
	text := string(out)
	find := func(r *regexp.Regexp) string {
		if m := r.FindStringSubmatch(text); m != nil {
			return m[1]
		}
		return ""
	}
	count, _ := strconv.Atoi(find(requests)) // none: 0
	perSecond, _ := strconv.ParseFloat(find(rate), 64)
	return result{perSecond: perSecond, p50: find(median), p99: find(tail), cpu: used / time.Duration(max(count, 1)), failed: find(trouble)}, nil
}

// cpuOf is the processor time that a process group has used so far.
func cpuOf(group int) (used time.Duration) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(raw), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 13 || fields[2] != strconv.Itoa(group) {
			continue
		}
		for _, ticks := range fields[11:13] {
			n, _ := strconv.Atoi(ticks)
			used += time.Duration(n) * 10 * time.Millisecond // USER_HZ is 100
		}
	}
	return used
}

// writeFiles makes a certificate and what the upstream serves.
func writeFiles(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost", "*." + domain}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	secret := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	var errs []error
	for name, data := range map[string][]byte{
		certFile: cert, keyFile: secret, "both.pem": append(cert, secret...), "big": make([]byte, bigSize),
	} {
		errs = append(errs, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	return errors.Join(append(errs, os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, "big"), 0o644))...)
}
