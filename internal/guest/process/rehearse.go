package process

import (
	"context"
	"slices"
	"time"

	pb "github.com/moat-sandbox/moat/api/process"
	"github.com/moat-sandbox/moat/internal/guest/account"
	"github.com/moat-sandbox/moat/internal/guest/session"
	"github.com/moat-sandbox/moat/internal/guest/wire"
)

// rehearsalTimeout bounds a rehearsal: a template's shell may be anything.
const rehearsalTimeout = 10 * time.Second

// Rehearse runs a command that does nothing, in the shell that callers use, and
// returns when it has ended or could not be run. Afterwards whatever the first
// command of a caller would otherwise wait for is in place: open files,
// libraries in memory, the kernel's own preparations. It leaves no trace in the
// list of processes.
func (s *Service) Rehearse(ctx context.Context) error {
	caller := wire.Caller{
		User:     account.User{Name: account.Root, Home: "/"},
		Settings: session.NewSettings("", "", "/", map[string]string{"LANG": "C.UTF-8"}),
	}
	req := &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "/bin/bash", Args: []string{"-c", "/bin/true"}}}
	cmd, err := newCommand(caller, req.GetProcess(), s.config.Path)
	if err != nil {
		return err
	}
	p, listener, err := s.launch(cmd, req, time.Now().Add(rehearsalTimeout))
	if err != nil {
		return err
	}
	defer s.forget(p)
	defer listener.leave()
	for {
		select {
		case event := <-listener.events:
			if event.GetEnd() != nil {
				return nil
			}
		case <-ctx.Done():
			s.kill(p)
			return ctx.Err()
		}
	}
}

func (s *Service) forget(gone *proc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.procs = slices.DeleteFunc(s.procs, func(p *proc) bool { return p == gone })
}
