package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"connectrpc.com/connect"

	pb "github.com/moat-sandbox/moat/api/process"
)

// input is our end of a process's standard input or terminal. Writes do not
// mix: each has its turn.
type input struct {
	turn chan struct{} // holds one token
	file *os.File      // nil when the process was given no input
}

func newInput(file *os.File) *input {
	in := &input{turn: make(chan struct{}, 1), file: file}
	in.turn <- struct{}{}
	return in
}

// write writes all of data, or as much as went before the context ended.
func (in *input) write(ctx context.Context, data []byte) error {
	if in.file == nil {
		return errors.New("the process was started without input")
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-in.turn:
	}
	defer func() { in.turn <- struct{}{} }()
	// A process that does not read would block the write for ever.
	cut := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cut)
		_ = in.file.SetWriteDeadline(time.Unix(1, 0)) // fails only when closed
	})
	_, err := in.file.Write(data)
	if !stop() {
		<-cut
		_ = in.file.SetWriteDeadline(time.Time{})
	}
	return err
}

// close ends the input; closing twice is no error.
func (in *input) close() {
	if in.file != nil {
		_ = in.file.Close() // fails only when it is closed already
	}
}

// SendInput implements pb.ProcessHandler.
func (s *Service) SendInput(ctx context.Context, req *pb.SendInputRequest) (*pb.SendInputResponse, error) {
	p, err := s.find(req.GetProcess(), false)
	if err != nil {
		return nil, err
	}
	if err := p.send(ctx, req.GetInput()); err != nil {
		return nil, err
	}
	return &pb.SendInputResponse{}, nil
}

// StreamInput implements pb.ProcessHandler.
func (s *Service) StreamInput(ctx context.Context, stream *connect.ClientStream[pb.StreamInputRequest]) (*pb.StreamInputResponse, error) {
	var p *proc
	for stream.Receive() {
		var err error
		switch e := stream.Msg().GetEvent().(type) {
		case *pb.StreamInputRequest_Start:
			if p != nil {
				err = connect.NewError(connect.CodeInvalidArgument, errors.New("start: the process is selected already"))
				break
			}
			p, err = s.find(e.Start.GetProcess(), false)
		case *pb.StreamInputRequest_Data:
			if p == nil {
				err = connect.NewError(connect.CodeInvalidArgument, errors.New("data: no process is selected yet"))
				break
			}
			err = p.send(ctx, e.Data.GetInput())
		case *pb.StreamInputRequest_Keepalive:
		default:
			err = connect.NewError(connect.CodeInvalidArgument, errors.New("event: neither start, data nor keepalive is given"))
		}
		if err != nil {
			return nil, err
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return &pb.StreamInputResponse{}, nil
}

// CloseStdin implements pb.ProcessHandler.
func (s *Service) CloseStdin(_ context.Context, req *pb.CloseStdinRequest) (*pb.CloseStdinResponse, error) {
	p, err := s.find(req.GetProcess(), false)
	if err != nil {
		return nil, err
	}
	if p.terminal {
		return nil, connect.NewError(connect.CodeUnknown, errors.New("a terminal's input cannot be closed; send 0x04 (Ctrl+D) instead"))
	}
	p.input.close()
	return &pb.CloseStdinResponse{}, nil
}

// send writes to the process. The kind of input must fit how it was started.
func (p *proc) send(ctx context.Context, in *pb.ProcessInput) error {
	var data []byte
	switch kind := in.GetInput().(type) {
	case *pb.ProcessInput_Stdin:
		if p.terminal {
			return connect.NewError(connect.CodeInternal, errors.New("input.stdin: the process has a terminal, send input.pty"))
		}
		data = kind.Stdin
	case *pb.ProcessInput_Pty:
		if !p.terminal {
			return connect.NewError(connect.CodeInternal, errors.New("input.pty: the process has no terminal, send input.stdin"))
		}
		data = kind.Pty
	default:
		return connect.NewError(connect.CodeInvalidArgument, errors.New("input: neither stdin nor pty is given"))
	}
	if err := p.input.write(ctx, data); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return connect.NewError(connect.CodeInternal, fmt.Errorf("write to process %d: %w", p.PID, err))
	}
	return nil
}
