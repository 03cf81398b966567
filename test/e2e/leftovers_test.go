package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/test/harness"
)

const (
	rounds     = 50
	concurrent = 4
)

// TestNothingIsLeftAfterManyRounds makes and kills sandboxes, several at a
// time, and looks at the machine when they and the server are gone.
func TestNothingIsLeftAfterManyRounds(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := s.Create(t, api.NewSandbox{})
	kinds := make(map[string]bool)
	for _, line := range s.Leftovers(t) {
		kind, _, _ := strings.Cut(line, " ")
		kinds[kind] = true
	}
	// What the check at the end would miss it could not find.
	for _, kind := range []string{"interface", "table", "mount", "process", "cgroup"} {
		if !kinds[kind] {
			t.Errorf("a running sandbox shows no %s", kind)
		}
	}
	if err := s.Client().Kill(t.Context(), box.ID); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if failed := churn(t.Context(), s.Client(), rounds); len(failed) > 0 {
		t.Errorf("%d of %d rounds failed, first: %v", len(failed), rounds, failed[0])
	}
	t.Logf("%d rounds in %s", rounds, time.Since(began))
	s.Stop()
	s.ExpectClean(t)
}

// TestNothingIsLeftWhenTheServerIsKilled kills the server in the middle of
// creates and kills, several times, and lets the next one clean up.
func TestNothingIsLeftWhenTheServerIsKilled(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	for _, after := range []time.Duration{20 * time.Millisecond, 150 * time.Millisecond, 400 * time.Millisecond, time.Second} {
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { churn(ctx, s.Client(), 10*rounds) })
		<-time.After(after)
		s.Kill()
		cancel()
		running.Wait()
		s.Start()
	}
	// The new server knows all that lives, and nothing else does.
	var known []string
	for listed, err := range s.Client().Sandboxes(t.Context(), client.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		known = append(known, listed.SandboxID)
	}
	t.Logf("%d sandboxes survived", len(known))
	for _, id := range known {
		if err := s.Client().Kill(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	s.Stop()
	s.ExpectClean(t)
}

// churn makes and kills n sandboxes, several at a time, until ctx ends, and
// returns what went wrong.
func churn(ctx context.Context, c *client.Client, n int) (failed []error) {
	rounds := make(chan int)
	failures := make(chan error, n)
	var running sync.WaitGroup
	for range concurrent {
		running.Go(func() {
			for i := range rounds {
				if err := round(ctx, c); err != nil {
					failures <- fmt.Errorf("round %d: %w", i, err)
				}
			}
		})
	}
	for i := range n {
		select {
		case rounds <- i:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(rounds)
	running.Wait()
	close(failures)
	return slices.Collect(func(yield func(error) bool) {
		for err := range failures {
			if !yield(err) {
				return
			}
		}
	})
}

// round is one sandbox's life.
func round(ctx context.Context, c *client.Client) error {
	made, err := c.CreateSandbox(ctx, api.NewSandbox{TemplateID: "base"})
	if err != nil {
		return err
	}
	exit, err := c.Open(made).Commands.Run(ctx, client.Command{Args: []string{"true"}})
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return fmt.Errorf("true exited with %d", exit.Code)
	}
	return c.Kill(ctx, made.SandboxID)
}
