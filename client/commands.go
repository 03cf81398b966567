package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"time"

	"github.com/moat-sandbox/moat/api/process"
)

// Commands runs commands in a sandbox.
type Commands struct{ rpc process.ProcessClient }

// Command is what to run. No shell is involved unless Args name one.
type Command struct {
	// Args are the program, looked up in the sandbox's PATH, and its arguments.
	Args []string
	Env  map[string]string
	// Dir is where to run; empty means the user's default.
	Dir string
	// Stdin is fed to the command until it ends or the command does; nil gives
	// an empty one. A Read that is under way when the command ends is not
	// waited for: its goroutine ends when the Read does.
	Stdin io.Reader
	// Stdout and Stderr take the output; nil discards it. They are written to
	// by Wait, never both at once.
	Stdout, Stderr io.Writer
	// Terminal gives the command a terminal of that size. All its output then
	// goes to Stdout, and Stdin is what is typed.
	Terminal *Size
}

// Size is a terminal's size in characters.
type Size struct{ Cols, Rows int }

func (s Size) wire() *process.PTY {
	return &process.PTY{Size: &process.PTY_Size{Cols: uint32(s.Cols), Rows: uint32(s.Rows)}}
}

// Exit says how a command ended.
type Exit struct {
	// Code is the command's exit code; -1 when a signal ended it.
	Code int
	// Status says it in words: "exit status 1", "signal: killed".
	Status string
}

// Run runs a command to its end. When ctx ends first, the command is killed and
// ctx's error returned.
func (c *Commands) Run(ctx context.Context, command Command) (Exit, error) {
	p, err := c.Start(ctx, command)
	if err != nil {
		return Exit{}, err
	}
	return p.Wait()
}

// backstop is how much later than the client the daemon kills a command whose
// deadline has passed. It matters only when the client is gone by then.
const backstop = 2 * time.Second

// Start starts a command. The caller must call Wait. When ctx ends, the command
// is killed.
func (c *Commands) Start(ctx context.Context, command Command) (*Process, error) {
	if len(command.Args) == 0 || command.Args[0] == "" {
		return nil, errors.New("start command: no program given")
	}
	// The stream outlives ctx by what it takes to kill the command. Its deadline
	// goes along as a header, and the daemon keeps it too.
	follow, cancel := context.WithCancel(context.WithoutCancel(ctx))
	if deadline, ok := ctx.Deadline(); ok {
		follow, cancel = context.WithDeadline(context.WithoutCancel(ctx), deadline.Add(backstop))
	}
	tag := newTag()
	p := &Process{
		ctx:     ctx,
		rpc:     c.rpc,
		command: command,
		self:    &process.ProcessSelector{Selector: &process.ProcessSelector_Tag{Tag: tag}},
		cancel:  cancel,
	}
	p.watch()
	if err := p.start(follow, request(command, tag)); err != nil {
		if p.release(err) {
			err = ctx.Err()
		}
		return nil, wrap("start command", fromCall(err))
	}
	return p, nil
}

func request(command Command, tag string) *process.StartRequest {
	config := &process.ProcessConfig{Cmd: command.Args[0], Args: command.Args[1:], Envs: command.Env}
	if command.Dir != "" {
		config.Cwd = &command.Dir
	}
	stdin := command.Stdin != nil
	req := &process.StartRequest{Process: config, Tag: &tag, Stdin: &stdin}
	if command.Terminal != nil {
		req.Pty = command.Terminal.wire()
	}
	return req
}

// newTag names a command before its process id is known, so that it can be
// killed even when ctx ends while it is being started.
func newTag() string {
	raw := make([]byte, 12)
	_, _ = rand.Read(raw) // documented never to fail
	return "client-" + hex.EncodeToString(raw)
}

// Running is a process in a sandbox that was started through its daemon.
type Running struct {
	PID  int
	Args []string
	Dir  string
}

// List names the processes that were started through the daemon and still run.
func (c *Commands) List(ctx context.Context) ([]Running, error) {
	answer, err := c.rpc.List(ctx, &process.ListRequest{})
	if err != nil {
		return nil, wrap("list commands", fromCall(err))
	}
	running := make([]Running, len(answer.Processes))
	for i, p := range answer.Processes {
		args := append([]string{p.Config.GetCmd()}, p.Config.GetArgs()...)
		running[i] = Running{PID: int(p.Pid), Args: args, Dir: p.Config.GetCwd()}
	}
	return running, nil
}
