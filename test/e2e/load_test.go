package e2e

import (
	"bufio"
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
	"github.com/moat-sandbox/moat/internal/lab"
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

// TestRequestsWhileSandboxesComeAndGo: 1,000 requests a second are offered to
// one sandbox, and every one is answered, while others are made and killed. How
// soon they are answered depends on the machine, and is only told.
func TestRequestsWhileSandboxesComeAndGo(t *testing.T) {
	const perSecond, total, clients = 1000, 8000, 32
	s := harness.Start(t, harness.Options{})
	box := withProber(t, s, api.NewSandbox{})
	box.Start(t, prober+" serve 8080")
	visit(t, s, publicURL(box, "http", 8080, "/x"), nil) // it listens

	stop := make(chan struct{})
	var others sync.WaitGroup
	churned := 0
	others.Go(func() {
		for churned < 3 || !isClosed(stop) {
			other := s.Create(t, api.NewSandbox{})
			if err := s.Client().Kill(t.Context(), other.ID); err != nil {
				t.Error(err)
				return
			}
			churned++
		}
	})
	due := offer(total, perSecond)
	took := make([][]time.Duration, clients)
	var asking sync.WaitGroup
	began := time.Now()
	for c := range clients {
		asking.Go(func() { took[c] = askWhenDue(t, s, box, due) })
	}
	asking.Wait()
	lasted := time.Since(began)
	close(stop)
	others.Wait()

	all := slices.Sorted(slices.Values(slices.Concat(took...)))
	if len(all) != total {
		t.Fatalf("%d requests of %d were answered", len(all), total)
	}
	t.Logf("%d requests in %v, from when they were due p50 %v, p99 %v, most %v, while %d sandboxes came and went",
		total, lasted, all[total/2], all[total*99/100], all[total-1], churned)
	if strings.Contains(s.Output(), "panic") {
		t.Error("the server panicked")
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// offer says when requests are due, whether or not earlier ones were answered.
func offer(total, perSecond int) <-chan time.Time {
	due := make(chan time.Time, total)
	go func() {
		defer close(due)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		began := time.Now()
		for n := 0; n < total; {
			now := <-tick.C
			for ; n < total; n++ {
				at := began.Add(time.Duration(n) * time.Second / time.Duration(perSecond))
				if at.After(now) {
					break
				}
				due <- at
			}
		}
	}()
	return due
}

// askWhenDue sends a request at each time that is due, over one connection, and
// returns how long after it the answer was there. It does no more than it must:
// the client shares the machine with what it measures.
func askWhenDue(t *testing.T, s *harness.Server, box *harness.Box, due <-chan time.Time) (took []time.Duration) {
	host := fmt.Sprintf("8080-%s.%s", box.ID, lab.Domain)
	conn, err := s.Lab.Node.Dial(t.Context(), "tcp", host+":80")
	if err != nil {
		t.Error(err)
		return nil
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	for at := range due {
		if _, err := io.WriteString(conn, "GET /x HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); err != nil {
			t.Error(err)
			return took
		}
		answer, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Error(err)
			return took
		}
		body, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode != 200 || !strings.HasPrefix(string(body), "GET "+host+" /x\n") {
			t.Errorf("%d %s %v", answer.StatusCode, body, err)
			return took
		}
		took = append(took, time.Since(at))
	}
	return took
}
