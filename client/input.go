package client

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"

	"github.com/moat-sandbox/moat/api/process"
)

// inputChunk is how much of Stdin is sent at once, in bytes.
const inputChunk = 32 << 10

// feed copies Stdin to the command, in a goroutine that ends with the input,
// with the command, or with the Read that is under way by then.
func (p *Process) feed(follow context.Context) {
	p.inputErr = make(chan error, 1)
	if p.command.Stdin == nil {
		return
	}
	ctx, cancel := context.WithCancel(follow)
	p.endInput = cancel
	go p.copyInput(ctx)
}

// copyInput reports only what reading failed with, and before the command can
// end of it. That the command takes no more input is its own business, and a
// broken connection ends the output too.
func (p *Process) copyInput(ctx context.Context) {
	stream, err := p.rpc.StreamInput(ctx)
	if err != nil {
		return
	}
	if err := p.pump(stream); err != nil && !errors.Is(err, io.EOF) {
		p.inputErr <- err
	}
	// The answer says that all of it has arrived; then the end can follow.
	_, refused := stream.CloseAndReceive()
	if refused == nil && p.command.Terminal == nil {
		_, _ = p.rpc.CloseStdin(ctx, &process.CloseStdinRequest{Process: p.self}) // or it has ended
	}
}

// inputStream carries Stdin to the daemon.
type inputStream = connect.ClientStreamForClientSimple[process.StreamInputRequest, process.StreamInputResponse]

// pump sends what it reads until reading fails, io.EOF included. It returns nil
// when the command takes no more.
func (p *Process) pump(stream *inputStream) error {
	start := &process.StreamInputRequest_StartEvent{Process: p.self}
	if stream.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Start{Start: start}}) != nil {
		return nil
	}
	buffer := make([]byte, inputChunk)
	for {
		n, err := p.command.Stdin.Read(buffer)
		if n > 0 && stream.Send(p.input(buffer[:n])) != nil {
			return nil
		}
		if err == nil {
			continue
		}
		if p.command.Terminal != nil {
			_ = stream.Send(p.input([]byte{endOfTransmission}))
		}
		return err
	}
}

// endOfTransmission is what a terminal takes for the end of its input.
const endOfTransmission = 0x04

// input makes a message of data, which is not kept.
func (p *Process) input(data []byte) *process.StreamInputRequest {
	input := &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: data}}
	if p.command.Terminal != nil {
		input.Input = &process.ProcessInput_Pty{Pty: data}
	}
	event := &process.StreamInputRequest_DataEvent{Input: input}
	return &process.StreamInputRequest{Event: &process.StreamInputRequest_Data{Data: event}}
}
