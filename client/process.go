package client

import (
	"context"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"

	"github.com/moat-sandbox/moat/api/process"
)

// Process is a running command.
type Process struct {
	// PID is its process id inside the sandbox.
	PID int

	ctx     context.Context // the caller's; its end kills the command
	rpc     process.ProcessClient
	command Command
	self    *process.ProcessSelector
	stream  *connect.ServerStreamForClient[process.StartResponse]
	cancel  context.CancelFunc // ends the stream

	unwatch  func() bool
	killed   chan struct{} // closed once the end of ctx has been dealt with
	endInput context.CancelFunc
	inputErr chan error // what reading Stdin failed with; one element at most
}

// killPatience is how long killing a command may take after ctx has ended.
const killPatience = 5 * time.Second

// watch kills the command when the caller's context ends.
func (p *Process) watch() {
	p.killed = make(chan struct{})
	p.unwatch = context.AfterFunc(p.ctx, func() {
		defer close(p.killed)
		defer p.cancel()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), killPatience)
		defer cancel()
		// An error means that it is gone already or out of reach; the daemon's
		// own clock takes care of the latter.
		_ = p.Kill(ctx)
	})
}

// start sends the request and waits for the daemon's word that it runs.
func (p *Process) start(follow context.Context, req *process.StartRequest) error {
	stream, err := p.rpc.Start(follow, req)
	if err != nil {
		return err
	}
	p.stream = stream
	for stream.Receive() {
		switch event := stream.Msg().GetEvent().GetEvent().(type) {
		case *process.ProcessEvent_Start:
			p.PID = int(event.Start.GetPid())
			p.feed(follow)
			return nil
		case *process.ProcessEvent_Keepalive:
		default:
			return errors.New("the daemon's first event is not the start")
		}
	}
	return streamError(stream)
}

// Wait copies the output until the command has ended. It must be called once.
func (p *Process) Wait() (Exit, error) {
	exit, err := p.follow()
	if cut := p.release(err); cut && (err != nil || exit.Code < 0) {
		err = p.ctx.Err()
	}
	if err != nil {
		return Exit{}, wrap("run command", fromCall(err))
	}
	select {
	case err := <-p.inputErr:
		return exit, wrap("read input", err)
	default:
		return exit, nil
	}
}

func (p *Process) follow() (Exit, error) {
	for p.stream.Receive() {
		switch event := p.stream.Msg().GetEvent().GetEvent().(type) {
		case *process.ProcessEvent_Data:
			if err := p.write(event.Data); err != nil {
				return Exit{}, err
			}
		case *process.ProcessEvent_End:
			return Exit{Code: int(event.End.GetExitCode()), Status: event.End.GetStatus()}, nil
		}
	}
	return Exit{}, streamError(p.stream)
}

func (p *Process) write(data *process.ProcessEvent_DataEvent) error {
	to, bytes := p.command.Stdout, data.GetStdout()
	switch output := data.GetOutput().(type) {
	case *process.ProcessEvent_DataEvent_Pty:
		bytes = output.Pty
	case *process.ProcessEvent_DataEvent_Stderr:
		to, bytes = p.command.Stderr, output.Stderr
	}
	if to == nil {
		return nil
	}
	_, err := to.Write(bytes)
	return err
}

// release ends everything that belongs to the process and reports whether the
// caller's context ended before it. A command that can no longer be followed is
// killed, because nobody would read its output.
func (p *Process) release(err error) (cut bool) {
	cut = !p.unwatch()
	switch {
	case cut:
		<-p.killed
	case err != nil && p.PID != 0:
		ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), killPatience)
		defer cancel()
		_ = p.Kill(ctx) // err is what went wrong
	}
	p.cancel()
	if p.endInput != nil {
		p.endInput()
	}
	if p.stream != nil {
		_ = p.stream.Close() // already ended or cancelled
	}
	return cut
}

// streamError says why a stream ended before the command did: a refusal, or else
// a sandbox or a server that is gone.
func streamError(stream *connect.ServerStreamForClient[process.StartResponse]) error {
	err := stream.Err()
	var refused *Error
	switch {
	case err == nil:
		err = io.ErrUnexpectedEOF
	case connect.IsWireError(err), errors.As(err, &refused):
		return err
	}
	return wrap("connection to the sandbox lost", err)
}

// Resize tells the command's terminal its new size.
func (p *Process) Resize(ctx context.Context, size Size) error {
	_, err := p.rpc.Update(ctx, &process.UpdateRequest{Process: p.self, Pty: size.wire()})
	return wrap("resize terminal", fromCall(err))
}

// Kill ends the command with SIGKILL.
func (p *Process) Kill(ctx context.Context) error {
	return p.signal(ctx, process.Signal_SIGNAL_SIGKILL)
}

// Terminate asks the command to end, with SIGTERM.
func (p *Process) Terminate(ctx context.Context) error {
	return p.signal(ctx, process.Signal_SIGNAL_SIGTERM)
}

func (p *Process) signal(ctx context.Context, signal process.Signal) error {
	_, err := p.rpc.SendSignal(ctx, &process.SendSignalRequest{Process: p.self, Signal: signal})
	return wrap("signal command", fromCall(err))
}
