package process

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	pb "github.com/moat-sandbox/moat/api/process"
	"github.com/moat-sandbox/moat/internal/guest/child"
)

// drainAfterKill is how long a killed process's output may stay open. What the
// process left behind can hold it open for ever, but then it lives on and only
// its output is no longer reported.
const drainAfterKill = time.Second

// proc is one process, running or recently ended.
type proc struct {
	*child.Child
	config   *pb.ProcessConfig
	tag      *string
	terminal bool
	input    *input
	output   *output
	// sources are our ends of what the process writes to, closed when they
	// have ended or the service closes.
	sources []*os.File
	// drained is when the process had ended and its output too.
	drained time.Time // guarded by the service's mu
}

// launch starts the command and returns it with a listener that misses nothing.
// Errors are ready to be returned from a handler.
func (s *Service) launch(c *command, req *pb.StartRequest, deadline time.Time) (*proc, *listener, error) {
	streams, err := newStreams(c.user, req)
	if err != nil {
		return nil, nil, err
	}
	started, err := s.start(c, streams)
	closeAll(streams.theirs)
	if err != nil {
		closeAll(streams.ours)
		return nil, nil, err
	}
	p := &proc{
		Child: started, config: req.GetProcess(), tag: req.Tag,
		terminal: streams.terminal, input: newInput(streams.input),
		output: &output{}, sources: streams.sources,
	}
	l := p.output.join()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prune(time.Now())
	s.procs = append(s.procs, p)
	if s.closed {
		s.abandon(p)
	}
	go func() {
		defer s.running.Done()
		s.supervise(p, deadline)
	}()
	s.config.Log.Debug("process started", "pid", p.PID, "user", c.user.Name)
	return p, l, nil
}

// start runs the command, or else the shell that says why it cannot be run.
// When it succeeds, the process counts as running.
func (s *Service) start(c *command, to *streams) (*child.Child, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("the sandbox is shutting down"))
	}
	s.running.Add(1)
	s.mu.Unlock()
	attr := &syscall.ProcAttr{
		Dir: c.dir, Env: c.env, Files: to.descriptors(),
		Sys: &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: c.user.UID, Gid: c.user.GID, Groups: c.user.Groups},
			// Its own process group or session: its "kill 0" must not reach us.
			Setpgid: !to.terminal, Setsid: to.terminal, Setctty: to.terminal,
		},
	}
	started, err := s.config.Reaper.Start(c.path, c.argv, attr)
	if err != nil && unrunnable(err) {
		shell := c.viaShell()
		if viaShell, failed := s.config.Reaper.Start(shell.path, shell.argv, attr); failed == nil {
			return viaShell, nil
		}
	}
	if err != nil {
		s.running.Done()
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("run %q in %q: %w", c.argv[0], c.dir, err))
	}
	return started, nil
}

// supervise reads a process's output to its end and reports how it ended. A
// zero deadline is none.
func (s *Service) supervise(p *proc, deadline time.Time) {
	drained, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(drained)
		p.drain(ended)
	}()
	status := s.await(p, deadline)
	close(ended)
	if status.Signaled() {
		select {
		case <-drained:
		case <-time.After(drainAfterKill):
		}
	} else {
		<-drained
	}
	p.input.close()
	p.output.publish(endEvent(status))
	<-drained
	s.mu.Lock()
	defer s.mu.Unlock()
	p.drained = time.Now()
}

// await returns how the process ended; it kills the process at its deadline.
func (s *Service) await(p *proc, deadline time.Time) syscall.WaitStatus {
	if deadline.IsZero() {
		return <-p.End
	}
	late := time.NewTimer(time.Until(deadline))
	defer late.Stop()
	select {
	case status := <-p.End:
		return status
	case <-late.C:
		s.kill(p)
		return <-p.End
	}
}

// kill ends a process. Where it cannot, that process has ended by itself.
func (s *Service) kill(p *proc) { _ = s.config.Reaper.Signal(p.Child, syscall.SIGKILL) }

// abandon ends a process and stops reading what it leaves behind.
func (s *Service) abandon(p *proc) {
	s.kill(p)
	closeAll(p.sources)
}

func (p *proc) ended() bool { return p.output.ended() }

// drain publishes all output and closes our ends of it. A terminal stays open
// until the process has ended: one that only lets go of its output (cat does,
// to notice write errors) must not be hung up on.
func (p *proc) drain(ended <-chan struct{}) {
	var pumps sync.WaitGroup
	for i, source := range p.sources {
		event, size := stdoutEvent, pipeChunk
		if p.terminal {
			event, size = terminalEvent, terminalChunk
		} else if i > 0 {
			event = stderrEvent
		}
		pumps.Go(func() {
			defer source.Close()
			p.output.pump(source, size, event)
			if p.terminal {
				<-ended
			}
		})
	}
	pumps.Wait()
}

// endEvent says how a process ended, in the words that clients parse.
func endEvent(status syscall.WaitStatus) *pb.ProcessEvent {
	end := &pb.ProcessEvent_EndEvent{ExitCode: -1}
	if status.Exited() {
		end.ExitCode = int32(status.ExitStatus())
		end.Exited = true
		end.Status = fmt.Sprintf("exit status %d", status.ExitStatus())
	} else {
		end.Status = fmt.Sprintf("signal: %s", status.Signal())
	}
	if status.CoreDump() {
		end.Status += " (core dumped)"
	}
	if end.ExitCode != 0 {
		end.Error = &end.Status
	}
	return &pb.ProcessEvent{Event: &pb.ProcessEvent_End{End: end}}
}
