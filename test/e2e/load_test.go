package e2e

import (
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/test/harness"
)

// resident is the server's memory in bytes.
func resident(t *testing.T, s *harness.Server) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.PID()))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(raw))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// watchMemory returns a function that says by how much the server has grown at
// most since watchMemory was called.
func watchMemory(t *testing.T, s *harness.Server) (grown func() int64) {
	t.Helper()
	before, most := resident(t, s), int64(0)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				most = max(most, resident(t, s)-before)
			case <-stop:
				return
			}
		}
	}()
	return func() int64 {
		close(stop)
		<-done
		return most
	}
}

// gigabyte is a body of 1 GiB that costs nothing to make.
type gigabyte struct{}

const gigabyteSize = 1 << 30

func (gigabyte) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// TestGigabytes: 1 GiB goes into a sandbox and comes out of it, by each
// protocol, and the server's memory stays what it is.
func TestGigabytes(t *testing.T) {
	const room = 64 << 20 // bytes
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, api.NewSandbox{Timeout: harness.Seconds(20 * time.Minute)})
	box.Start(t, prober+" serve 8080")
	sum := crc32.NewIEEE()
	_, _ = io.CopyN(sum, gigabyte{}, gigabyteSize) // a sum takes everything
	want := fmt.Sprint(gigabyteSize, sum.Sum32(), nil)
	for _, scheme := range []string{"http", "https"} { // HTTP/1.1 and HTTP/2
		grown := watchMemory(t, s)
		began := time.Now()
		req, err := http.NewRequestWithContext(t.Context(), "PUT", publicURL(box, scheme, 8080, "/sum"), io.LimitReader(gigabyte{}, gigabyteSize))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := s.HTTP().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || string(body) != want {
			t.Errorf("%s: the sandbox got %s, want %s, %v", scheme, body, want, err)
		}
		up := time.Since(began)

		began = time.Now()
		if answer, err = s.HTTP().Get(publicURL(box, scheme, 8080, fmt.Sprintf("/zeros?n=%d", gigabyteSize))); err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		if err != nil || n != gigabyteSize {
			t.Errorf("%s: the client got %d bytes, %v", scheme, n, err)
		}
		most := grown()
		t.Logf("%s: 1 GiB up in %v, down in %v, memory grew by %d KiB", answer.Proto, up, time.Since(began), most>>10)
		if most > room {
			t.Errorf("%s: the server grew by %d MiB", scheme, most>>20)
		}
	}
}

// TestRequestsWhileSandboxesComeAndGo: 8,000 requests to one sandbox, 1,000 a
// second if the machine can, are all answered while others are made and killed.
func TestRequestsWhileSandboxesComeAndGo(t *testing.T) {
	const requests, perSecond, clients = 8000, 1000, 32
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, api.NewSandbox{})
	box.Start(t, prober+" serve 8080")
	url := publicURL(box, "http", 8080, "/x")
	visit(t, s, url, nil) // it listens

	stop := make(chan struct{})
	var others sync.WaitGroup
	churned := 0
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			other := s.Create(t, api.NewSandbox{})
			if err := s.Client().Kill(t.Context(), other.ID); err != nil {
				t.Error(err)
			}
			churned++
		}
	})
	took := make([][]time.Duration, clients)
	var asking sync.WaitGroup
	began := time.Now()
	for c := range clients {
		asking.Go(func() {
			tick := time.NewTicker(time.Second * clients / perSecond)
			defer tick.Stop()
			for range requests / clients {
				now := <-tick.C
				status, body := visit(t, s, url, nil)
				if status != 200 || !strings.HasPrefix(body, "GET ") {
					t.Errorf("%d %s", status, body)
					return
				}
				took[c] = append(took[c], time.Since(now))
			}
		})
	}
	asking.Wait()
	close(stop)
	others.Wait()

	all := slices.Sorted(slices.Values(slices.Concat(took...)))
	if len(all) != requests {
		t.Fatalf("%d of %d requests were answered", len(all), requests)
	}
	p50, p99 := all[len(all)/2], all[len(all)*99/100]
	t.Logf("%d requests in %v, p50 %v, p99 %v, most %v, while %d sandboxes came and went", len(all), time.Since(began), p50, p99, all[len(all)-1], churned)
	if churned < 3 {
		t.Errorf("only %d sandboxes came and went", churned)
	}
	if strings.Contains(s.Output(), "panic") {
		t.Error("the server panicked")
	}
}
