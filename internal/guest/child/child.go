// Package child starts processes and collects them when they end.
//
// The daemon is the sandbox's init: besides its own children it inherits every
// orphan, and must collect those too. Whoever waits for "any child" steals from
// whoever waits for one, so a single Reaper does all the waiting and nothing
// else in the daemon may wait for processes.
package child

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// Reaper starts children and collects them.
type Reaper struct {
	// orphans says whether to collect processes that Start did not start.
	orphans bool
	changed chan os.Signal

	// collecting is held for reading while a process is started or signalled,
	// so that it cannot be collected, and its id given to another, in between.
	collecting sync.RWMutex

	mu      sync.Mutex
	waiting map[int]*Child // guarded by mu
}

// Child is a process that Start started.
type Child struct {
	PID int
	// End yields the status once, when the process has ended.
	End       <-chan syscall.WaitStatus
	end       chan<- syscall.WaitStatus
	collected bool // guarded by the reaper's mu
}

// NewReaper returns a reaper that watches from now on; Run does its work. With
// orphans it collects every process that ends below this one, as init must.
func NewReaper(orphans bool) *Reaper {
	r := &Reaper{
		orphans: orphans,
		changed: make(chan os.Signal, 1),
		waiting: make(map[int]*Child),
	}
	signal.Notify(r.changed, syscall.SIGCHLD)
	return r
}

// Run collects processes until the context ends.
func (r *Reaper) Run(ctx context.Context) error {
	defer signal.Stop(r.changed)
	for {
		r.collect()
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
		}
	}
}

// Start starts a program.
func (r *Reaper) Start(path string, argv []string, attr *syscall.ProcAttr) (*Child, error) {
	r.collecting.RLock()
	defer r.collecting.RUnlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, err
	}
	end := make(chan syscall.WaitStatus, 1)
	c := &Child{PID: pid, End: end, end: end}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting[pid] = c
	return c, nil
}

// ErrEnded means that the process has ended.
var ErrEnded = errors.New("process has ended")

// Signal sends a signal to a child. It returns ErrEnded when that has been
// collected, so the signal never reaches another process with the same id.
func (r *Reaper) Signal(c *Child, sig syscall.Signal) error {
	r.collecting.RLock()
	defer r.collecting.RUnlock()
	r.mu.Lock()
	collected := c.collected
	r.mu.Unlock()
	if collected {
		return ErrEnded
	}
	if err := syscall.Kill(c.PID, sig); err != nil {
		return fmt.Errorf("signal process %d: %w", c.PID, err)
	}
	return nil
}

// collect takes the status of every process that has ended.
func (r *Reaper) collect() {
	r.collecting.Lock()
	defer r.collecting.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.orphans {
		for r.take(-1) {
		}
		return
	}
	for pid := range r.waiting {
		r.take(pid)
	}
}

// take collects one ended process and reports whether there was one.
func (r *Reaper) take(which int) bool {
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(which, &status, syscall.WNOHANG, nil)
	for err == syscall.EINTR {
		pid, err = syscall.Wait4(which, &status, syscall.WNOHANG, nil)
	}
	if err != nil || pid <= 0 {
		return false
	}
	if c, ours := r.waiting[pid]; ours {
		delete(r.waiting, pid)
		c.collected = true
		c.end <- status // has room: it is sent once
	}
	return true
}
