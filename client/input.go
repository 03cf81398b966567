package client

import (
	"context"
	"errors"
	"io"

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
	go func() {
		if err := p.copyInput(ctx); err != nil {
			p.inputErr <- err
		}
	}()
}

// copyInput returns only what reading failed with. That the command takes no
// more input is its own business, and a broken connection ends the output too.
func (p *Process) copyInput(ctx context.Context) error {
	buffer := make([]byte, inputChunk)
	for {
		n, err := p.command.Stdin.Read(buffer)
		if n > 0 {
			if p.send(ctx, buffer[:n]) != nil {
				return nil
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF):
			p.closeInput(ctx)
			return nil
		case err != nil:
			p.closeInput(ctx)
			return err
		}
	}
}

func (p *Process) send(ctx context.Context, data []byte) error {
	input := &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: data}}
	if p.command.Terminal != nil {
		input.Input = &process.ProcessInput_Pty{Pty: data}
	}
	_, err := p.rpc.SendInput(ctx, &process.SendInputRequest{Process: p.self, Input: input})
	return err
}

// endOfTransmission is what a terminal takes for the end of its input.
const endOfTransmission = 0x04

// closeInput passes the end of Stdin on. An error means that the command is
// gone already.
func (p *Process) closeInput(ctx context.Context) {
	if p.command.Terminal != nil {
		_ = p.send(ctx, []byte{endOfTransmission})
		return
	}
	_, _ = p.rpc.CloseStdin(ctx, &process.CloseStdinRequest{Process: p.self})
}
