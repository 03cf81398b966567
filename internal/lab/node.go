package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// errClosed is returned for work on a node that is no more.
var errClosed = errors.New("lab is closed")

// Node is the machine under test: a network namespace, and for processes also
// a mount and a PID namespace. A process started here sees the lab's resolver,
// its own /run, /sys and /proc, and the host's files and cgroups otherwise.
// What it mounts is seen by nobody outside.
type Node struct {
	*Space

	// work is served by the keeper, the one thread that lives in all three
	// namespaces; a process starts in those of the thread that forks it.
	work chan func()
	quit chan struct{}
	done chan struct{}
	once sync.Once

	// first is PID 1 of the node's PID namespace. The kernel ends every other
	// process of the node with it, and ends it with the keeper's thread.
	first *exec.Cmd

	mu       sync.Mutex
	unreaped map[*Cmd]struct{} // started, and nobody waits for them yet
}

// newNode makes the node with nothing but a loopback. nameserver goes to its
// /etc/resolv.conf.
func newNode(nameserver string) (*Node, error) {
	n := &Node{
		Space:    &Space{name: "node"},
		work:     make(chan func()),
		quit:     make(chan struct{}),
		done:     make(chan struct{}),
		unreaped: make(map[*Cmd]struct{}),
	}
	ready := make(chan error)
	go n.keep(nameserver, ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("make the node: %w", err)
	}
	return n, nil
}

// keep is the keeper. It holds its thread until the node is closed and then
// gives it up for good.
func (n *Node) keep(nameserver string, ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread would stay in the namespaces: leave it to another
		// goroutine to find a better one.
		defer runtime.UnlockOSThread()
		go n.keep(nameserver, ready)
		<-n.done
		return
	}
	defer close(n.done)
	if err := n.enter(nameserver); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for {
		select {
		case fn := <-n.work:
			fn()
		case <-n.quit:
			return
		}
	}
}

// enter makes the namespaces around the calling thread.
func (n *Node) enter(nameserver string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := n.adoptThread(); err != nil {
		return err
	}
	if err := mountNode(nameserver); err != nil {
		return errors.Join(err, n.Space.close())
	}
	// Before its first process package os forks a child to see whether pidfds
	// work. It must not be the one that becomes PID 1; finding a process also
	// makes os look.
	if _, err := os.FindProcess(os.Getpid()); err != nil {
		return errors.Join(err, n.Space.close())
	}
	if err := unix.Unshare(unix.CLONE_NEWPID); err != nil {
		return errors.Join(fmt.Errorf("unshare: %w", err), n.Space.close())
	}
	if err := n.startFirst(); err != nil {
		return errors.Join(err, n.Space.close())
	}
	return nil
}

// startFirst starts PID 1: it mounts the node's /proc and sleeps. It ignores
// the end of children, so that the kernel reaps the orphans it inherits. (A
// shell's trap cannot do that: it does not survive the exec.)
func (n *Node) startFirst() error {
	const script = `mount -t proc proc /proc && echo ready && exec env --ignore-signal=CHLD sleep infinity`
	var complaint bytes.Buffer
	n.first = exec.Command("/bin/sh", "-c", script)
	n.first.Stderr = &complaint
	n.first.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	out, err := n.first.StdoutPipe()
	if err != nil {
		return err
	}
	if err := n.first.Start(); err != nil {
		return fmt.Errorf("start the node's first process: %w", err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		_ = n.first.Process.Kill()
		_ = n.first.Wait()
		return fmt.Errorf("start the node's first process: %s", complaint.String())
	}
	return nil
}

// close ends every process of the node and gives up its namespaces.
func (n *Node) close() error {
	n.once.Do(func() {
		_ = n.first.Process.Kill() // and with it all others
		// PID 1 ends only when the rest is reaped. It reaps orphans, but the
		// commands are our children.
		for _, cmd := range n.takeUnreaped() {
			_ = cmd.Wait()
		}
		_ = n.first.Wait() // says "killed"
		close(n.quit)
	})
	<-n.done
	return n.Space.close()
}

func (n *Node) takeUnreaped() []*Cmd {
	n.mu.Lock()
	defer n.mu.Unlock()
	cmds := slices.Collect(maps.Keys(n.unreaped))
	clear(n.unreaped)
	return cmds
}

// onKeeper runs fn on the keeper's thread, one fn at a time.
func (n *Node) onKeeper(fn func() error) error {
	result := make(chan error, 1)
	select {
	case n.work <- func() { result <- fn() }:
		return <-result
	case <-n.quit:
		return errClosed
	}
}

// WriteFile writes a file as processes on the node see it. Below /run it
// exists only there.
func (n *Node) WriteFile(path string, data []byte, perm os.FileMode) error {
	return n.onKeeper(func() error { return os.WriteFile(path, data, perm) })
}

// Mkdir makes a directory as processes on the node see it.
func (n *Node) Mkdir(path string, perm os.FileMode) error {
	return n.onKeeper(func() error { return os.Mkdir(path, perm) })
}

// Command is exec.CommandContext for a process on the node. It outlives
// neither ctx nor the lab.
func (n *Node) Command(ctx context.Context, name string, args ...string) *Cmd {
	return &Cmd{Cmd: exec.CommandContext(ctx, name, args...), node: n}
}

// PID1 is the host's number of the node's first process: /proc/<PID1>/root,
// mountinfo and ns lead into the node from outside.
func (n *Node) PID1() int { return n.first.Process.Pid }

// Cmd is an exec.Cmd whose process runs on the node.
type Cmd struct {
	*exec.Cmd
	node *Node

	once  sync.Once
	ended error // guarded by once
}

// Start starts the process and does not wait for it.
func (c *Cmd) Start() error {
	if c.Dir == "" {
		dir, err := os.Getwd() // the keeper does not follow os.Chdir
		if err != nil {
			return err
		}
		c.Dir = dir
	}
	return c.node.onKeeper(func() error {
		if err := c.Cmd.Start(); err != nil {
			return err
		}
		c.node.mu.Lock()
		defer c.node.mu.Unlock()
		c.node.unreaped[c] = struct{}{}
		return nil
	})
}

// Wait waits for the end of a started process. Unlike exec.Cmd's it may be called
// by several: the lab waits as well, when it closes.
func (c *Cmd) Wait() error {
	c.node.mu.Lock()
	delete(c.node.unreaped, c)
	c.node.mu.Unlock()
	c.once.Do(func() { c.ended = c.Cmd.Wait() })
	return c.ended
}

// Run starts the process and waits for its end.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the process and returns what it wrote to standard output. Its
// standard error, unless redirected, becomes part of the error.
func (c *Cmd) Output() ([]byte, error) {
	var out, complaint bytes.Buffer
	c.Stdout = &out
	if c.Stderr == nil {
		c.Stderr = &complaint
	}
	err := c.Run()
	if err != nil && complaint.Len() > 0 {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out.Bytes(), err
}

// CombinedOutput runs the process and returns all that it wrote.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}
