package guest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	"github.com/moat-sandbox/moat/api"
	pb "github.com/moat-sandbox/moat/api/process"
)

// outcome is all that a followed process said.
type outcome struct {
	pid            uint32
	stdout, stderr string
	terminal       string
	keepalives     int
	end            *pb.ProcessEvent_EndEvent
}

type eventStream interface {
	Receive() bool
	Err() error
	Close() error
}

// follow reads a stream of events to its end.
func follow(t *testing.T, stream eventStream, event func() *pb.ProcessEvent) outcome {
	t.Helper()
	defer stream.Close()
	var o outcome
	for n := 0; stream.Receive(); n++ {
		if n == 0 && event().GetStart() == nil {
			t.Errorf("the first event is %v, want start", event())
		}
		o.add(event())
	}
	if err := stream.Err(); err != nil {
		t.Fatalf("stream: %v", err)
	}
	return o
}

func (o *outcome) add(e *pb.ProcessEvent) {
	switch e := e.GetEvent().(type) {
	case *pb.ProcessEvent_Start:
		o.pid = e.Start.GetPid()
	case *pb.ProcessEvent_Data:
		o.stdout += string(e.Data.GetStdout())
		o.stderr += string(e.Data.GetStderr())
		o.terminal += string(e.Data.GetPty())
	case *pb.ProcessEvent_Keepalive:
		o.keepalives++
	case *pb.ProcessEvent_End:
		o.end = e.End
	}
}

func shell(script string) *pb.StartRequest {
	return &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", script}}}
}

// begin starts a process and returns after its start event.
func begin(t *testing.T, ctx context.Context, c pb.ProcessClient, req *pb.StartRequest) (*connect.ServerStreamForClient[pb.StartResponse], uint32) {
	t.Helper()
	stream, err := c.Start(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() {
		t.Fatalf("start: %v", stream.Err())
	}
	return stream, stream.Msg().GetEvent().GetStart().GetPid()
}

func run(t *testing.T, c pb.ProcessClient, req *pb.StartRequest) outcome {
	t.Helper()
	stream, err := c.Start(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return follow(t, stream, func() *pb.ProcessEvent { return stream.Msg().GetEvent() })
}

func attach(t *testing.T, c pb.ProcessClient, selector *pb.ProcessSelector) outcome {
	t.Helper()
	stream, err := c.Connect(t.Context(), &pb.ConnectRequest{Process: selector})
	if err != nil {
		t.Fatal(err)
	}
	return follow(t, stream, func() *pb.ProcessEvent { return stream.Msg().GetEvent() })
}

func byPID(pid uint32) *pb.ProcessSelector {
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: pid}}
}

func byTag(tag string) *pb.ProcessSelector {
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Tag{Tag: tag}}
}

func kill(t *testing.T, c pb.ProcessClient, pid uint32) {
	t.Helper()
	if _, err := c.SendSignal(t.Context(), &pb.SendSignalRequest{Process: byPID(pid), Signal: pb.Signal_SIGNAL_SIGKILL}); err != nil {
		t.Fatal(err)
	}
}

func TestRunReportsOutputAndEnd(t *testing.T) {
	d := ready(t, api.GuestInit{AccessToken: "t"})
	for name, codec := range codecs {
		t.Run(name, func(t *testing.T) {
			c := d.process(nil, codec...)
			o := run(t, c, shell("echo out; echo err >&2; exit 3"))
			if o.stdout != "out\n" || o.stderr != "err\n" || o.pid == 0 {
				t.Errorf("outcome = %+v", o)
			}
			if o.end.GetExitCode() != 3 || !o.end.GetExited() || o.end.GetStatus() != "exit status 3" || o.end.GetError() != "exit status 3" {
				t.Errorf("end = %v", o.end)
			}
			o = run(t, c, shell("exit 0"))
			if o.end.GetExitCode() != 0 || !o.end.GetExited() || o.end.GetStatus() != "exit status 0" || o.end.Error != nil {
				t.Errorf("end = %v", o.end)
			}
			o = run(t, c, shell("kill -9 $$"))
			if o.end.GetExitCode() != -1 || o.end.GetExited() || o.end.GetStatus() != "signal: killed" {
				t.Errorf("end = %v", o.end)
			}
		})
	}
}

func TestUnrunnableCommandsEndAsInAShell(t *testing.T) {
	c := ready(t, api.GuestInit{}).process(nil)
	dir := openDir(t, 0, 0)
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("echo from the script"), 0o644); err != nil {
		t.Fatal(err)
	}
	for cmd, want := range map[string]int32{"no-such-command": 127, "/no/such/file": 127, script: 126, dir: 126} {
		o := run(t, c, &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: cmd}})
		if o.end.GetExitCode() != want || o.stderr == "" {
			t.Errorf("%s: end = %v, stderr = %q; want exit code %d and a message", cmd, o.end, o.stderr, want)
		}
	}
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	// Without "#!" a shell runs it, as every shell does.
	if o := run(t, c, &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: script}}); o.stdout != "from the script\n" {
		t.Errorf("script: %+v", o)
	}
}

func TestCommandsGetUserDirectoryAndEnvironment(t *testing.T) {
	dir := openDir(t, 1, 1)
	d := ready(t, api.GuestInit{DefaultUser: "daemon", DefaultWorkdir: dir, EnvVars: map[string]string{"A": "default", "B": "default"}})
	tell := shell(`echo $(id -u):$(id -g):$(id -G):$PWD:$HOME:$USER:$LOGNAME:$A:$B:$PATH`)
	tell.Process.Envs = map[string]string{"B": "asked"}
	o := run(t, d.process(nil), tell)
	if want := "1:1:1:" + dir + ":/usr/sbin:daemon:daemon:default:asked:" + testPath + "\n"; o.stdout != want {
		t.Errorf("default user: %q, want %q", o.stdout, want)
	}
	home := "~"
	tell.Process.Cwd = &home
	o = run(t, d.process(as("root")), tell)
	if want := "0:0:0:/root:/root:root:root:default:asked:" + testPath + "\n"; o.stdout != want {
		t.Errorf("root: %q, want %q", o.stdout, want)
	}
}

func TestUsersGetTheirSupplementaryGroups(t *testing.T) {
	want, err := exec.Command("id", "-G", "games").Output()
	if err != nil {
		t.Fatal(err)
	}
	c := ready(t, api.GuestInit{}).process(as("games"))
	if o := run(t, c, shell("id -G")); o.stdout != string(want) {
		t.Errorf("groups = %q, want %q", o.stdout, want)
	}
}

func TestStartRefusesWhatItCannotDo(t *testing.T) {
	d := ready(t, api.GuestInit{})
	missing, file := "/no/such/dir", "/etc/passwd"
	long := uint32(1 << 16)
	for name, c := range map[string]struct {
		headers map[string]string
		change  func(*pb.StartRequest)
		code    connect.Code
		text    string
	}{
		"user":      {headers: as("nobody-here"), code: connect.CodeUnauthenticated, text: "invalid username: 'nobody-here'"},
		"scheme":    {headers: map[string]string{"Authorization": "Bearer x"}, code: connect.CodeUnauthenticated, text: "Bearer"},
		"base64":    {headers: map[string]string{"Authorization": "Basic *"}, code: connect.CodeUnauthenticated, text: "base64"},
		"cwd":       {change: func(r *pb.StartRequest) { r.Process.Cwd = &missing }, code: connect.CodeInvalidArgument, text: "cwd '/no/such/dir' does not exist"},
		"cwd file":  {change: func(r *pb.StartRequest) { r.Process.Cwd = &file }, code: connect.CodeInvalidArgument, text: "cwd '/etc/passwd' is not a directory"},
		"no cmd":    {change: func(r *pb.StartRequest) { r.Process.Cmd = "" }, code: connect.CodeInvalidArgument, text: "process.cmd"},
		"nothing":   {change: func(r *pb.StartRequest) { r.Process = nil }, code: connect.CodeInvalidArgument, text: "process.cmd"},
		"NUL":       {change: func(r *pb.StartRequest) { r.Process.Args = []string{"a\x00b"} }, code: connect.CodeInvalidArgument, text: "NUL"},
		"env":       {change: func(r *pb.StartRequest) { r.Process.Envs = map[string]string{"A=B": ""} }, code: connect.CodeInvalidArgument, text: "process.envs"},
		"pty":       {change: func(r *pb.StartRequest) { r.Pty = &pb.PTY{Size: &pb.PTY_Size{Cols: long}} }, code: connect.CodeInvalidArgument, text: "pty.size"},
		"zero":      {headers: map[string]string{"Keepalive-Ping-Interval": "0"}, code: connect.CodeInvalidArgument, text: "Keepalive-Ping-Interval"},
		"negative":  {headers: map[string]string{"Keepalive-Ping-Interval": "-5"}, code: connect.CodeInvalidArgument, text: "Keepalive-Ping-Interval"},
		"word":      {headers: map[string]string{"Keepalive-Ping-Interval": "soon"}, code: connect.CodeInvalidArgument, text: "Keepalive-Ping-Interval"},
		"enormous":  {headers: map[string]string{"Keepalive-Ping-Interval": "99999999999"}, code: connect.CodeInvalidArgument, text: "Keepalive-Ping-Interval"},
		"timeout":   {headers: map[string]string{"Connect-Timeout-Ms": "soon"}, code: connect.CodeInvalidArgument, text: "timeout"},
		"timeout -": {headers: map[string]string{"Connect-Timeout-Ms": "-1"}, code: connect.CodeInvalidArgument, text: "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			req := shell("echo it ran")
			if c.change != nil {
				c.change(req)
			}
			stream, err := d.process(c.headers).Start(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Close()
			if stream.Receive() {
				t.Fatalf("event %v, want an error", stream.Msg())
			}
			wantCode(t, stream.Err(), c.code, c.text)
		})
	}
}
