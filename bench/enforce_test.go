package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/bench/load"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// echoTarget answers in a sandbox's flows while they are allowed.
var echoTarget = fmt.Sprintf("%s:%d", serverAddr, lab.EchoPort)

// BenchmarkEnforce measures from PUT /sandboxes/{id}/network to its answer, to
// the first new connection that is refused, and to the end of a live one.
func BenchmarkEnforce(b *testing.B) {
	s := startMoat(b)
	for _, entries := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprintf("%d entries", entries), func(b *testing.B) {
			allowed, refused := denyAllBut(append(otherHosts(entries-1), serverAddr)...), denyAllBut(otherHosts(entries)...)
			box, from := sandbox(b, s, allowed)
			var answered, enforced, cut []time.Duration
			for b.Loop() {
				fresh := from.begin(b, load.Load{Kind: load.Refused, Target: echoTarget, Time: time.Minute})
				live := from.begin(b, load.Load{Kind: load.Cut, Target: echoTarget, Time: time.Minute})
				began := now(b)
				put(b, s, box, refused)
				answered = append(answered, now(b)-began)
				enforced = append(enforced, fresh.end(b).At-began)
				cut = append(cut, live.end(b).At-began)
				put(b, s, box, allowed)
			}
			b.ReportMetric(0, "ns/op")
			report(b, answered, "answered")
			report(b, enforced, "enforced")
			report(b, cut, "cut")
		})
	}
}

func now(b *testing.B) time.Duration {
	b.Helper()
	at, err := load.Now()
	if err != nil {
		b.Fatal(err)
	}
	return at
}

func put(b *testing.B, s *harness.Server, box *harness.Box, network *api.Network) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	if err := s.Client().SetNetwork(ctx, box.Made.SandboxID, api.NetworkUpdate{Network: *network}); err != nil {
		b.Fatal(err)
	}
}

// begun is a load that goes on until something else happens.
type begun struct {
	cmd *lab.Cmd
	out *bufio.Reader
}

// begin starts a load and waits until it is under way.
func (s source) begin(b *testing.B, l load.Load) begun {
	b.Helper()
	cmd := s.prepare(b, l)
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	started := begun{cmd, bufio.NewReader(out)}
	if line, err := started.out.ReadString('\n'); err != nil || line != load.Ready {
		_ = cmd.Wait() // also if it has failed
		b.Fatalf("%s to %s has not begun: %q, %v", l.Kind, l.Target, line, err)
	}
	return started
}

// end waits for the outcome.
func (l begun) end(b *testing.B) load.Outcome {
	b.Helper()
	text, err := io.ReadAll(l.out)
	if waited := l.cmd.Wait(); waited != nil || err != nil {
		b.Fatalf("load: %v, %v", waited, err)
	}
	return outcome(b, text)
}
