// Package peers starts the programs that benchmarks compare moat with, on this
// machine or on the node of a laboratory.
package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"github.com/moat-sandbox/moat/internal/lab"
)

// Peer is a program that serves something.
type Peer struct {
	Name    string
	Package string // of Debian, that has it; empty for what is always there
	Program string
	Args    []string
	Env     []string          // all of it; nil stands for this process's own
	Files   map[string]string // what it reads, by path
	Listens string            // where, over TCP, as soon as it serves
}

// ErrMissing is returned for a program that the machine does not have.
var ErrMissing = errors.New("is not installed")

// Place is where peers run.
type Place interface {
	WriteFile(path string, data []byte, perm os.FileMode) error
	Dial(ctx context.Context, network, address string) (net.Conn, error)
	// Prepare makes a command that ends with ctx, and what starts it and waits
	// for its end.
	Prepare(ctx context.Context, program string, args ...string) (cmd *exec.Cmd, start, wait func() error)
}

// Machine is this machine as a Place. A peer has a process group of its own there.
type Machine struct{ net.Dialer }

// Dial implements Place.
func (m Machine) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return m.DialContext(ctx, network, address)
}

// WriteFile implements Place.
func (Machine) WriteFile(path string, data []byte, perm os.FileMode) error {
	return os.WriteFile(path, data, perm)
}

// Prepare implements Place.
func (Machine) Prepare(ctx context.Context, program string, args ...string) (cmd *exec.Cmd, start, wait func() error) {
	cmd = exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	return cmd, cmd.Start, cmd.Wait
}

// Node is the node of a laboratory as a Place.
type Node struct{ *lab.Node }

// Prepare implements Place.
func (n Node) Prepare(ctx context.Context, program string, args ...string) (cmd *exec.Cmd, start, wait func() error) {
	c := n.Command(ctx, program, args...)
	c.WaitDelay = time.Second // its children end with the laboratory only
	return c.Cmd, c.Start, c.Wait
}

// Running is a peer that serves.
type Running struct {
	PID  int
	stop context.CancelFunc
	wait func() error
	said *os.File
}

// Stop ends the peer, if it has not ended with its context, and waits for that.
func (r *Running) Stop() {
	r.stop()
	_ = r.wait() // it was told to end
	_ = r.said.Close()
}

// startTime bounds the time until a peer listens.
const startTime = 30 * time.Second

// Start starts a peer and returns when it listens. The caller stops it.
// ErrMissing.
func (p Peer) Start(ctx context.Context, at Place) (*Running, error) {
	program, err := exec.LookPath(p.Program)
	if err != nil {
		return nil, fmt.Errorf("%s: %s %w (apt-get install %s)", p.Name, p.Program, ErrMissing, p.Package)
	}
	for _, path := range slices.Sorted(maps.Keys(p.Files)) {
		if err := at.WriteFile(path, []byte(p.Files[path]), 0o644); err != nil {
			return nil, fmt.Errorf("start %s: %w", p.Name, err)
		}
	}
	// A file, so that what it says costs us nothing, and without a name.
	said, err := os.CreateTemp("", "peer-")
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	if err := os.Remove(said.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", p.Name, err), said.Close())
	}
	ctx, stop := context.WithCancel(ctx)
	cmd, start, wait := at.Prepare(ctx, program, p.Args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = p.Env, said, said
	if err := start(); err != nil {
		stop()
		return nil, errors.Join(fmt.Errorf("start %s: %w", p.Name, err), said.Close())
	}
	r := &Running{PID: cmd.Process.Pid, stop: stop, wait: wait, said: said}
	if err := p.await(ctx, at); err != nil {
		text, _ := io.ReadAll(io.NewSectionReader(said, 0, 1<<20)) // without it the error tells less
		r.Stop()
		return nil, fmt.Errorf("%s does not listen at %s: %w: %s", p.Name, p.Listens, err, text)
	}
	return r, nil
}

// await returns when the peer listens.
func (p Peer) await(ctx context.Context, at Place) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		conn, err := at.Dial(ctx, "tcp", p.Listens)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
