package child

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

func running(t *testing.T) *Reaper {
	t.Helper()
	r := NewReaper(false)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func sh(t *testing.T, r *Reaper, script string) *Child {
	t.Helper()
	c, err := r.Start("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{Env: os.Environ(), Sys: &syscall.SysProcAttr{}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func end(t *testing.T, c *Child) syscall.WaitStatus {
	t.Helper()
	select {
	case s := <-c.End:
		return s
	case <-time.After(10 * time.Second):
		t.Fatal("the end was not reported")
		return 0
	}
}

func TestEveryEndIsReportedOnce(t *testing.T) {
	r := running(t)
	var all sync.WaitGroup
	for i := range 30 {
		all.Go(func() {
			c, err := r.Start("/bin/sh", []string{"sh", "-c", "exit $0", string(rune('0' + i%10))}, &syscall.ProcAttr{})
			if err != nil {
				t.Error(err)
				return
			}
			if s := <-c.End; s.ExitStatus() != i%10 {
				t.Errorf("exit status %d, want %d", s.ExitStatus(), i%10)
			}
		})
	}
	all.Wait()
}

func TestOthersKeepTheirChildren(t *testing.T) {
	r := running(t)
	for range 20 {
		c := sh(t, r, "exit 1")
		if err := exec.Command("true").Run(); err != nil {
			t.Fatalf("a child of someone else: %v", err)
		}
		if s := end(t, c); s.ExitStatus() != 1 {
			t.Errorf("exit status %d", s.ExitStatus())
		}
	}
}

func TestSignal(t *testing.T) {
	r := running(t)
	c := sh(t, r, "exec sleep 60")
	if err := r.Signal(c, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s := end(t, c); !s.Signaled() || s.Signal() != syscall.SIGKILL {
		t.Errorf("status = %v", s)
	}
	if err := r.Signal(c, syscall.SIGKILL); !errors.Is(err, ErrEnded) {
		t.Errorf("signal after the end: %v, want ErrEnded", err)
	}
}

func TestStartFails(t *testing.T) {
	if c, err := running(t).Start("/no/such/program", nil, &syscall.ProcAttr{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("start = %v, %v", c, err)
	}
}
