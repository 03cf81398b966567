package namespaces

import (
	"strconv"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

func TestDiskLimit(t *testing.T) {
	l := newLab(t)
	if l == nil {
		return
	}
	limits := testLimits
	limits.DiskMB = 8
	_, s := l.start(dirRoot(), limits)
	s.must(t, request{Op: "fill", Args: []string{"/tmp/a"}, N: 4})
	// The template's other mounts share the limit.
	r, err := s.ask(request{Op: "fill", Args: []string{"/usr/b"}, N: 8})
	if err != nil || !strings.Contains(r.Err, "no space left") {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestMemoryLimit(t *testing.T) {
	l := newLab(t)
	if l == nil || !l.enforced().Memory {
		return
	}
	limits := testLimits
	limits.MemoryMB = 64
	b, s := l.start(dirRoot(), limits)
	s.must(t, request{Op: "eat", N: 8})
	if _, err := s.ask(request{Op: "eat", N: 256}); err == nil {
		t.Error("it ate more than it may")
	}
	exit, err := b.Wait(t.Context())
	if err != nil || !exit.OOM {
		t.Errorf("exit %+v, %v", exit, err)
	}
}

func TestProcessLimit(t *testing.T) {
	l := newLab(t)
	if l == nil || !l.enforced().Processes {
		return
	}
	limits := testLimits
	limits.Processes = 40
	_, s := l.start(dirRoot(), limits)
	r, err := s.ask(request{Op: "fork", N: 60})
	if err != nil || r.Err == "" {
		t.Fatalf("60 processes under a limit of 40: %+v, %v", r, err)
	}
	if n, err := strconv.Atoi(r.Out); err != nil || n >= 40 {
		t.Errorf("%s processes under a limit of 40", r.Out)
	}
	s.must(t, request{Op: "args"}) // the guest survives
}

// enforced asks what this machine can hold.
func (l *lab) enforced() sandbox.Enforced {
	l.t.Helper()
	caps, err := l.Probe(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	return caps.Enforced
}
