package namespaces

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

func TestProbe(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	caps, err := l.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if caps.Kernel || !strings.Contains(caps.Isolation, "NO kernel isolation") {
		t.Errorf("it claims too much: %+v", caps)
	}
	if !caps.Enforced.Disk || len(caps.Missing) != 0 != (caps.Enforced != sandbox.Enforced{CPU: true, Memory: true, Disk: true, Processes: true}) {
		t.Errorf("what is enforced and what is missing do not agree: %+v", caps)
	}
	if left, err := l.List(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("left by the probe: %q, %v", left, err)
	}
	if points, err := below(l.root); err != nil || len(points) != 0 {
		t.Errorf("mounts left by the probe: %q, %v", points, err)
	}
}

// TestWithoutEngine: on a machine without runc and crun everything says so and
// nothing is half done.
func TestWithoutEngine(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	r, err := New(Config{Root: filepath.Join(t.TempDir(), "ns"), Instance: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Probe(t.Context()); !errors.Is(err, errNoEngine) || !strings.Contains(err.Error(), "neither runc nor crun is installed") {
		t.Errorf("Probe: %v", err)
	}
	if _, err := r.Prepare(t.Context(), sandbox.NewBoxID(), "/proc/self/ns/net", sandbox.Limits{}); !errors.Is(err, errNoEngine) {
		t.Errorf("Prepare: %v", err)
	}
	if ids, err := r.List(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("List: %q, %v", ids, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// TestEngineThatDoesNotWork: an engine that fails is named with its reason.
func TestEngineThatDoesNotWork(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "runc"), []byte("#!/bin/sh\necho no such luck >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	r, err := New(Config{Root: filepath.Join(t.TempDir(), "ns"), Instance: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Probe(t.Context())
	if err == nil || !strings.Contains(err.Error(), "runc does not work here") || !strings.Contains(err.Error(), "no such luck") {
		t.Errorf("Probe: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if points, err := below(r.root); err != nil || len(points) != 0 {
		t.Errorf("mounts left: %q, %v", points, err)
	}
}

func TestNewRefuses(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	for name, cfg := range map[string]Config{
		"relative root": {Root: "ns", Instance: "test", Logger: logger},
		"unclean root":  {Root: "/tmp/../ns", Instance: "test", Logger: logger},
		"bad instance":  {Root: t.TempDir(), Instance: "a/b", Logger: logger},
		"no logger":     {Root: t.TempDir(), Instance: "test"},
		"no directory":  {Root: "/proc/ns", Instance: "test", Logger: logger},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
