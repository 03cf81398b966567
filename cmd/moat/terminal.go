package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"

	"github.com/moat-sandbox/moat/client"
)

// runInTerminal runs a command on this program's terminal: raw, so that every
// key goes to the sandbox, and as large as it is here. The terminal is put back
// whatever happens.
func (c *cli) runInTerminal(ctx context.Context, box *client.Sandbox, command client.Command) (exit client.Exit, err error) {
	in, ok := c.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return client.Exit{}, errors.New("-t needs a terminal as standard input")
	}
	// Resizes that happen from here on are not missed.
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	if command.Terminal, err = terminalSize(in); err != nil {
		return client.Exit{}, err
	}
	before, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return client.Exit{}, fmt.Errorf("prepare terminal: %w", err)
	}
	defer func() { err = errors.Join(err, term.Restore(int(in.Fd()), before)) }()

	running, err := box.Commands.Start(ctx, command)
	if err != nil {
		return client.Exit{}, err
	}
	follow, stop := context.WithCancel(ctx)
	var following sync.WaitGroup
	following.Go(func() { followSize(follow, in, resized, running) })
	exit, err = running.Wait()
	stop()
	following.Wait()
	return exit, err
}

// terminalSize reads a terminal's size. Those that know none, such as serial
// lines, get the classic one.
func terminalSize(in *os.File) (*client.Size, error) {
	cols, rows, err := term.GetSize(int(in.Fd()))
	if err != nil {
		return nil, fmt.Errorf("read terminal size: %w", err)
	}
	if cols == 0 || rows == 0 {
		cols, rows = 80, 24
	}
	return &client.Size{Cols: cols, Rows: rows}, nil
}

// followSize passes each change of the terminal's size on. A size that does not
// arrive is no reason to end the command: the next one may.
func followSize(ctx context.Context, in *os.File, resized <-chan os.Signal, running *client.Process) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-resized:
			if size, err := terminalSize(in); err == nil {
				_ = running.Resize(ctx, *size)
			}
		}
	}
}
