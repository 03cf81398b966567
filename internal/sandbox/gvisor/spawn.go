package gvisor

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// launch describes one of gVisor's processes: our own executable under
// another name, in its own namespaces, with the open files it needs and no
// environment.
//
// gVisor's own functions for this are written for a command that runs once:
// they hand the process's standard streams to the sandbox and change their
// owner, move the whole process into a cgroup and back, and cannot be
// cancelled. A server that boots many boxes at a time can afford none of that.
type launch struct {
	exe     string
	name    string   // argv[0]
	flags   []string // gVisor's general flags
	command []string // the subcommand and its flags
	id      string   // the last argument
	files   []donation
	stderr  *os.File            // nil for none
	attr    syscall.SysProcAttr // namespaces to create and identity
	netns   *os.File            // the network namespace to start in
	group   *group
}

// donation is an open file that a process inherits; it learns the number by
// the flag.
type donation struct {
	flag string
	file *os.File
}

// start executes the process. The caller keeps its own files.
func (l launch) start() (*process, error) {
	args := append(append([]string{}, l.flags...), l.command...)
	var extra []*os.File
	for _, d := range l.files {
		args = append(args, fmt.Sprintf("--%s=%d", d.flag, 3+len(extra)))
		extra = append(extra, d.file)
	}
	pidfd := -1
	cmd := exec.Command(l.exe, append(args, l.id)...)
	cmd.Args[0] = l.name
	cmd.Env = []string{}
	cmd.ExtraFiles = extra
	if l.stderr != nil {
		cmd.Stderr = l.stderr
	}
	cmd.SysProcAttr = &l.attr
	cmd.SysProcAttr.Setsid = true // a terminal's signals are not for it
	cmd.SysProcAttr.PidFD = &pidfd
	err := onThrowawayThread(func() error {
		if err := enterNetNS(l.netns); err != nil {
			return err
		}
		leave, err := l.group.enter(cmd.SysProcAttr)
		if err != nil {
			return err
		}
		defer leave()
		return cmd.Start()
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", l.name, err)
	}
	return adoptCommand(cmd, pidfd)
}

// oomScore makes the kernel choose boxes before the server when the machine runs
// out of memory, even where the server itself is protected from that: they would
// inherit it.
const oomScore = "500"

// adoptCommand turns a started command into a process; on failure it is ended.
func adoptCommand(cmd *exec.Cmd, pidfd int) (*process, error) {
	pid := cmd.Process.Pid
	if pidfd < 0 {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("start %s: this kernel has no pidfds (Linux 5.4 or later is needed)", cmd.Args[0])
	}
	if err := unix.SetNonblock(pidfd, true); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = unix.Close(pidfd)
		return nil, fmt.Errorf("start %s: set pidfd non-blocking: %w", cmd.Args[0], err)
	}
	p, err := newProcess(pid, pidfd)
	if err == nil {
		err = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(oomScore), 0)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("start %s: %w", cmd.Args[0], err)
	}
	// Waiting goes through our pidfd.
	return p, cmd.Process.Release()
}

// enterNetNS moves the calling thread, which is thrown away afterwards, into a
// network namespace.
func enterNetNS(ns *os.File) error {
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return nil
}
