package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
)

// Box is a sandbox made by a test.
type Box struct {
	*client.Sandbox
	Made api.Sandbox
}

// Create makes a sandbox or fails the test. An empty template means base.
func (s *Server) Create(tb testing.TB, spec api.NewSandbox) *Box {
	tb.Helper()
	if spec.TemplateID == "" {
		spec.TemplateID = "base"
	}
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	c := s.Client()
	made, err := c.CreateSandbox(ctx, spec)
	if err != nil {
		tb.Fatal(err)
	}
	return &Box{Sandbox: c.Open(made), Made: made}
}

// Result is how a command in a sandbox ended.
type Result struct {
	Code           int
	Stdout, Stderr string
}

// Run runs a shell command line in the sandbox. A command that could not be
// run at all fails the test; what it exits with is for the test to judge.
func (b *Box) Run(tb testing.TB, line string) Result {
	tb.Helper()
	return b.run(tb, b.Sandbox, line)
}

// RunAs is Run as the named user.
func (b *Box) RunAs(tb testing.TB, user, line string) Result {
	tb.Helper()
	return b.run(tb, b.As(user), line)
}

func (b *Box) run(tb testing.TB, as *client.Sandbox, line string) Result {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	exit, err := as.Commands.Run(ctx, client.Command{
		Args:   []string{"/bin/bash", "-l", "-c", line},
		Stdout: &stdout, Stderr: &stderr,
	})
	if err != nil {
		tb.Fatalf("run %q in %s: %v\n%s", line, b.ID, err, stderr.String())
	}
	return Result{Code: exit.Code, Stdout: stdout.String(), Stderr: stderr.String()}
}

// Start starts a shell command line that goes on by itself, and returns when
// it runs.
func (b *Box) Start(tb testing.TB, line string) *client.Process {
	tb.Helper()
	p, err := b.Commands.Start(tb.Context(), client.Command{Args: []string{"/bin/bash", "-l", "-c", line}})
	if err != nil {
		tb.Fatalf("start %q in %s: %v", line, b.ID, err)
	}
	return p
}

// MustRun is Run for a command that has to succeed; it returns its output
// without surrounding space.
func (b *Box) MustRun(tb testing.TB, line string) string {
	tb.Helper()
	r := b.Run(tb, line)
	if r.Code != 0 {
		tb.Fatalf("%q in %s exited with %d:\n%s%s", line, b.ID, r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// Upload copies a program of this machine into the sandbox.
func (b *Box) Upload(tb testing.TB, from, to string) {
	tb.Helper()
	file, err := os.Open(from)
	if err != nil {
		tb.Fatal(err)
	}
	defer file.Close()
	if err := b.Files.Write(tb.Context(), to, file); err != nil {
		tb.Fatal(err)
	}
	b.MustRun(tb, "chmod 755 "+to)
}

// Answer is what the server said to a raw request.
type Answer struct {
	Status int
	Header http.Header
	Body   string
}

// Request sends one raw request with the server's first key and returns the
// answer. path may be a whole URL.
func (s *Server) Request(tb testing.TB, method, path, body string) Answer {
	tb.Helper()
	return s.RequestAs(tb, s.Key, method, path, strings.NewReader(body))
}

// RequestAs is Request with another key, or none where it is empty.
func (s *Server) RequestAs(tb testing.TB, key, method, path string, body io.Reader) Answer {
	tb.Helper()
	answer, err := s.TryRequest(tb.Context(), key, method, path, body)
	if err != nil {
		tb.Fatal(err)
	}
	return answer
}

// TryRequest is RequestAs for a server that may not answer.
func (s *Server) TryRequest(ctx context.Context, key, method, path string, body io.Reader) (Answer, error) {
	if !strings.Contains(path, "://") {
		path = URL + path
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, path, body)
	if err != nil {
		return Answer{}, err
	}
	if key != "" {
		req.Header.Set("X-API-Key", key)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.http.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return Answer{}, fmt.Errorf("read answer: %w", err)
	}
	return Answer{Status: resp.StatusCode, Header: resp.Header, Body: string(text)}, nil
}

// Status is the HTTP status of a refusal, or 0 for any other error and none.
func Status(err error) int {
	var refused *client.Error
	if errors.As(err, &refused) {
		return refused.Status
	}
	return 0
}

// Seconds is a pointer to a number of seconds, as the API's bodies want it.
func Seconds(d time.Duration) *int64 {
	n := int64(d / time.Second)
	return &n
}
