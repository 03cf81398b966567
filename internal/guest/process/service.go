// Package process is the daemon's process service: it runs commands, follows
// their output and talks to them.
//
// A process belongs to the sandbox, not to the call that started it: callers
// come and go, output without a listener is read and dropped, and only a
// signal, its own end or its deadline ends it.
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	pb "github.com/moat-sandbox/moat/api/process"
	"github.com/moat-sandbox/moat/internal/guest/child"
	"github.com/moat-sandbox/moat/internal/guest/session"
	"github.com/moat-sandbox/moat/internal/guest/wire"
)

// Config is what the service needs. Every field must be set.
type Config struct {
	Sessions *session.Store
	Reaper   *child.Reaper
	Log      *slog.Logger
	// Path is the PATH of commands that are given none.
	Path string
	// Retention is how long the end of a process can still be asked for.
	Retention time.Duration
}

// maxEnded bounds how many ended processes are kept for those who ask late.
const maxEnded = 256

// Service implements pb.ProcessHandler.
type Service struct {
	config  Config
	running sync.WaitGroup // one for each process that is read from

	mu     sync.Mutex
	closed bool
	procs  []*proc // in order of their start, ended ones until they are pruned
}

// New checks the configuration and returns the service.
func New(c Config) (*Service, error) {
	if c.Sessions == nil || c.Reaper == nil || c.Log == nil || c.Path == "" || c.Retention <= 0 {
		return nil, errors.New("process service: configuration is incomplete")
	}
	return &Service{config: c}, nil
}

// Close kills what runs and returns when nothing of the service is left. It
// needs the reaper to be running.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	for _, p := range s.procs {
		s.abandon(p)
	}
	s.mu.Unlock()
	s.running.Wait()
}

// Start implements pb.ProcessHandler.
func (s *Service) Start(ctx context.Context, req *pb.StartRequest, stream *connect.ServerStream[pb.StartResponse]) error {
	every, err := wire.Keepalive(ctx)
	if err != nil {
		return err
	}
	caller, err := wire.From(ctx, s.config.Sessions)
	if err != nil {
		return err
	}
	cmd, err := newCommand(caller, req.GetProcess(), s.config.Path)
	if err != nil {
		return err
	}
	// The deadline is the command's, so it holds also after the caller left.
	deadline, _ := ctx.Deadline()
	p, listener, err := s.launch(cmd, req, deadline)
	if err != nil {
		return err
	}
	defer listener.leave()
	return follow(ctx, p.PID, listener, every, func(e *pb.ProcessEvent) error {
		return stream.Send(&pb.StartResponse{Event: e})
	})
}

// Connect implements pb.ProcessHandler.
func (s *Service) Connect(ctx context.Context, req *pb.ConnectRequest, stream *connect.ServerStream[pb.ConnectResponse]) error {
	every, err := wire.Keepalive(ctx)
	if err != nil {
		return err
	}
	p, err := s.find(req.GetProcess(), true)
	if err != nil {
		return err
	}
	listener := p.output.join()
	defer listener.leave()
	return follow(ctx, p.PID, listener, every, func(e *pb.ProcessEvent) error {
		return stream.Send(&pb.ConnectResponse{Event: e})
	})
}

// follow sends a process's events until its end or the caller's.
func follow(ctx context.Context, pid int, l *listener, every time.Duration, send func(*pb.ProcessEvent) error) error {
	start := &pb.ProcessEvent_StartEvent{Pid: uint32(pid)}
	if err := send(&pb.ProcessEvent{Event: &pb.ProcessEvent_Start{Start: start}}); err != nil {
		return err
	}
	silence := time.NewTimer(every)
	defer silence.Stop()
	for {
		event := &pb.ProcessEvent{Event: &pb.ProcessEvent_Keepalive{Keepalive: &pb.ProcessEvent_KeepAlive{}}}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case event = <-l.events:
		case <-silence.C:
		}
		if err := send(event); err != nil {
			return err
		}
		if event.GetEnd() != nil {
			return nil
		}
		silence.Reset(every)
	}
}

// List implements pb.ProcessHandler.
func (s *Service) List(context.Context, *pb.ListRequest) (*pb.ListResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prune(time.Now())
	res := &pb.ListResponse{}
	for _, p := range s.procs {
		if !p.ended() {
			res.Processes = append(res.Processes, &pb.ProcessInfo{Config: p.config, Pid: uint32(p.PID), Tag: p.tag})
		}
	}
	return res, nil
}

// SendSignal implements pb.ProcessHandler.
func (s *Service) SendSignal(_ context.Context, req *pb.SendSignalRequest) (*pb.SendSignalResponse, error) {
	var sig syscall.Signal
	switch req.GetSignal() {
	case pb.Signal_SIGNAL_SIGKILL:
		sig = syscall.SIGKILL
	case pb.Signal_SIGNAL_SIGTERM:
		sig = syscall.SIGTERM
	default:
		return nil, connect.NewError(connect.CodeUnimplemented, fmt.Errorf("signal: %s cannot be sent", req.GetSignal()))
	}
	p, err := s.find(req.GetProcess(), false)
	if err != nil {
		return nil, err
	}
	if err := s.config.Reaper.Signal(p.Child, sig); errors.Is(err, child.ErrEnded) {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process with pid %d has ended", p.PID))
	} else if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return &pb.SendSignalResponse{}, nil
}

// Update implements pb.ProcessHandler.
func (s *Service) Update(_ context.Context, req *pb.UpdateRequest) (*pb.UpdateResponse, error) {
	p, err := s.find(req.GetProcess(), false)
	if err != nil {
		return nil, err
	}
	if req.GetPty() == nil {
		return &pb.UpdateResponse{}, nil
	}
	if !p.terminal {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("pty: process %d has no terminal", p.PID))
	}
	size, err := terminalSize(req.GetPty())
	if err != nil {
		return nil, err
	}
	if err := setSize(p.input.file, size); err != nil {
		return nil, connect.NewError(connect.CodeInternal, fmt.Errorf("resize terminal: %w", err))
	}
	return &pb.UpdateResponse{}, nil
}

// find returns the selected process. With ended it may have ended already; of
// several with one tag it is the youngest, and one that runs comes first.
func (s *Service) find(selector *pb.ProcessSelector, ended bool) (*proc, error) {
	var matches func(*proc) bool
	var missing error
	switch by := selector.GetSelector().(type) {
	case *pb.ProcessSelector_Pid:
		matches = func(p *proc) bool { return uint32(p.PID) == by.Pid }
		missing = fmt.Errorf("process with pid %d not found", by.Pid)
	case *pb.ProcessSelector_Tag:
		matches = func(p *proc) bool { return p.tag != nil && *p.tag == by.Tag }
		missing = fmt.Errorf("process with tag '%s' not found", by.Tag)
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("process: neither pid nor tag is given"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prune(time.Now())
	var last *proc
	for _, p := range slices.Backward(s.procs) {
		if !matches(p) {
			continue
		}
		if !p.ended() {
			return p, nil
		}
		if last == nil {
			last = p
		}
	}
	if last == nil || !ended {
		return nil, connect.NewError(connect.CodeNotFound, missing)
	}
	return last, nil
}

// prune forgets processes that ended too long ago, or that are too many. The
// caller holds the lock.
func (s *Service) prune(now time.Time) {
	ended := 0
	for i, p := range slices.Backward(s.procs) {
		if p.drained.IsZero() {
			continue
		}
		if ended++; ended > maxEnded || now.Sub(p.drained) > s.config.Retention {
			s.procs = slices.Delete(s.procs, i, i+1)
		}
	}
}
