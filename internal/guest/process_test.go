package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

func TestInput(t *testing.T) {
	d := ready(t, api.GuestInit{})
	for name, codec := range codecs {
		t.Run(name, func(t *testing.T) {
			c := d.process(nil, codec...)
			stream, pid := begin(t, t.Context(), c, &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "cat"}})
			stdin := func(s string) *pb.ProcessInput {
				return &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte(s)}}
			}
			if _, err := c.SendInput(t.Context(), &pb.SendInputRequest{Process: byPID(pid), Input: stdin("one ")}); err != nil {
				t.Fatal(err)
			}
			in, err := c.StreamInput(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range []*pb.StreamInputRequest{
				{Event: &pb.StreamInputRequest_Start{Start: &pb.StreamInputRequest_StartEvent{Process: byPID(pid)}}},
				{Event: &pb.StreamInputRequest_Keepalive{Keepalive: &pb.StreamInputRequest_KeepAlive{}}},
				{Event: &pb.StreamInputRequest_Data{Data: &pb.StreamInputRequest_DataEvent{Input: stdin("two ")}}},
				{Event: &pb.StreamInputRequest_Data{Data: &pb.StreamInputRequest_DataEvent{Input: stdin("three")}}},
			} {
				if err := in.Send(e); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := in.CloseAndReceive(); err != nil {
				t.Fatal(err)
			}
			pty := &pb.ProcessInput{Input: &pb.ProcessInput_Pty{Pty: []byte("x")}}
			_, err = c.SendInput(t.Context(), &pb.SendInputRequest{Process: byPID(pid), Input: pty})
			wantCode(t, err, connect.CodeInternal, "no terminal")
			if _, err := c.CloseStdin(t.Context(), &pb.CloseStdinRequest{Process: byPID(pid)}); err != nil {
				t.Fatal(err)
			}
			var o outcome
			for stream.Receive() {
				o.add(stream.Msg().GetEvent())
			}
			if o.stdout != "one two three" {
				t.Errorf("stdout = %q", o.stdout)
			}
		})
	}
}

func TestInputCanBeClosedTwice(t *testing.T) {
	c := ready(t, api.GuestInit{}).process(nil)
	_, pid := begin(t, t.Context(), c, shell("exec sleep 60"))
	for range 2 {
		if _, err := c.CloseStdin(t.Context(), &pb.CloseStdinRequest{Process: byPID(pid)}); err != nil {
			t.Error(err)
		}
	}
	in := &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte("x")}}
	_, err := c.SendInput(t.Context(), &pb.SendInputRequest{Process: byPID(pid), Input: in})
	wantCode(t, err, connect.CodeInternal, "closed")
}

func TestInputOrderIsChecked(t *testing.T) {
	c := ready(t, api.GuestInit{}).process(nil)
	for name, event := range map[string]*pb.StreamInputRequest{
		"data first": {Event: &pb.StreamInputRequest_Data{Data: &pb.StreamInputRequest_DataEvent{}}},
		"nothing":    {},
	} {
		in, err := c.StreamInput(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := in.Send(event); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		_, err = in.CloseAndReceive()
		wantCode(t, err, connect.CodeInvalidArgument, ":")
		if t.Failed() {
			t.Fatalf("in case %q", name)
		}
	}
}

func TestWithoutStdinInputIsEmpty(t *testing.T) {
	c := ready(t, api.GuestInit{}).process(nil)
	req := &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "cat"}, Stdin: new(bool)}
	if o := run(t, c, req); o.stdout != "" || o.end.GetExitCode() != 0 {
		t.Errorf("outcome = %+v", o)
	}
	req = shell("exec sleep 60")
	req.Stdin = new(bool)
	_, pid := begin(t, t.Context(), c, req)
	_, err := c.SendInput(t.Context(), &pb.SendInputRequest{Process: byPID(pid), Input: &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{}}})
	wantCode(t, err, connect.CodeInternal, "without input")
}

// A process that does not read must not hold its writers for ever.
func TestBlockedInputEndsWithItsCaller(t *testing.T) {
	c := ready(t, api.GuestInit{}).process(nil)
	_, pid := begin(t, t.Context(), c, shell("exec sleep 60"))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	big := &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: make([]byte, 1<<20)}}
	_, err := c.SendInput(ctx, &pb.SendInputRequest{Process: byPID(pid), Input: big})
	if connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Fatalf("error = %v, want deadline exceeded", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = c.SendInput(ctx, &pb.SendInputRequest{Process: byPID(pid), Input: big})
	if connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Fatalf("the second writer's error = %v, want deadline exceeded", err)
	}
}

func TestTerminal(t *testing.T) {
	d := ready(t, api.GuestInit{DefaultUser: "daemon"})
	c := d.process(nil)
	req := shell("stty size; stty -echo; test -t 0 && echo a terminal; test -O $(tty) && echo mine; read line; stty size; echo got $line; exit 5")
	req.Pty = &pb.PTY{Size: &pb.PTY_Size{Cols: 100, Rows: 30}}
	stream, pid := begin(t, t.Context(), c, req)
	defer stream.Close()
	var o outcome
	for !strings.Contains(o.terminal, "mine") {
		if !stream.Receive() {
			t.Fatalf("ended after %q: %v", o.terminal, stream.Err())
		}
		o.add(stream.Msg().GetEvent())
	}
	size := &pb.PTY{Size: &pb.PTY_Size{Cols: 132, Rows: 50}}
	if _, err := c.Update(t.Context(), &pb.UpdateRequest{Process: byPID(pid), Pty: size}); err != nil {
		t.Fatal(err)
	}
	_, err := c.CloseStdin(t.Context(), &pb.CloseStdinRequest{Process: byPID(pid)})
	wantCode(t, err, connect.CodeUnknown, "terminal")
	stdin := &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte("x")}}
	_, err = c.SendInput(t.Context(), &pb.SendInputRequest{Process: byPID(pid), Input: stdin})
	wantCode(t, err, connect.CodeInternal, "has a terminal")
	in := &pb.ProcessInput{Input: &pb.ProcessInput_Pty{Pty: []byte("typed\n")}}
	if _, err := c.SendInput(t.Context(), &pb.SendInputRequest{Process: byPID(pid), Input: in}); err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
		o.add(stream.Msg().GetEvent())
	}
	if want := "30 100\r\na terminal\r\nmine\r\n50 132\r\ngot typed\r\n"; o.terminal != want {
		t.Errorf("terminal = %q, want %q", o.terminal, want)
	}
	if o.end.GetExitCode() != 5 || o.stdout != "" || o.stderr != "" {
		t.Errorf("outcome = %+v", o)
	}
}

func TestUpdateNeedsATerminal(t *testing.T) {
	c := ready(t, api.GuestInit{}).process(nil)
	_, pid := begin(t, t.Context(), c, shell("exec sleep 60"))
	_, err := c.Update(t.Context(), &pb.UpdateRequest{Process: byPID(pid), Pty: &pb.PTY{}})
	wantCode(t, err, connect.CodeFailedPrecondition, "no terminal")
}

func TestAllListenersGetEverything(t *testing.T) {
	c := ready(t, api.GuestInit{}).process(nil)
	stream, pid := begin(t, t.Context(), c, shell("read go; seq 1 20000; exit 9"))
	const others = 3
	results := make(chan outcome, others)
	joined := make(chan struct{}, others)
	for range others {
		go func() {
			s, err := c.Connect(t.Context(), &pb.ConnectRequest{Process: byPID(pid)})
			if err != nil || !s.Receive() {
				t.Errorf("connect: %v, %v", err, s.Err())
				results <- outcome{}
				return
			}
			joined <- struct{}{}
			var o outcome
			for s.Receive() {
				o.add(s.Msg().GetEvent())
			}
			results <- o
		}()
	}
	for range others {
		<-joined
	}
	in := &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte("\n")}}
	if _, err := c.SendInput(t.Context(), &pb.SendInputRequest{Process: byPID(pid), Input: in}); err != nil {
		t.Fatal(err)
	}
	var first outcome
	for stream.Receive() {
		first.add(stream.Msg().GetEvent())
	}
	if !strings.HasSuffix(first.stdout, "\n20000\n") || first.end.GetExitCode() != 9 {
		t.Fatalf("the starter's outcome is %d bytes, %v", len(first.stdout), first.end)
	}
	for range others {
		if o := <-results; o.stdout != first.stdout || o.end.GetExitCode() != 9 {
			t.Errorf("a listener has %d bytes, %v; want %d", len(o.stdout), o.end, len(first.stdout))
		}
	}
}

func TestAnEndedProcessCanStillBeConnectedTo(t *testing.T) {
	c := ready(t, api.GuestInit{}).process(nil)
	o := run(t, c, shell("echo gone; exit 4"))
	again := attach(t, c, byPID(o.pid))
	if again.pid != o.pid || again.end.GetExitCode() != 4 || again.stdout != "" {
		t.Errorf("outcome = %+v", again)
	}
	_, err := c.SendSignal(t.Context(), &pb.SendSignalRequest{Process: byPID(o.pid), Signal: pb.Signal_SIGNAL_SIGKILL})
	wantCode(t, err, connect.CodeNotFound, fmt.Sprintf("process with pid %d not found", o.pid))
	_, err = c.CloseStdin(t.Context(), &pb.CloseStdinRequest{Process: byPID(o.pid)})
	wantCode(t, err, connect.CodeNotFound, "not found")
	if list, err := c.List(t.Context(), &pb.ListRequest{}); err != nil || len(list.GetProcesses()) != 0 {
		t.Errorf("list = %v, %v; want none", list, err)
	}
}

func TestSelectors(t *testing.T) {
	c := ready(t, api.GuestInit{}).process(nil)
	pids := map[string]uint32{}
	for _, tag := range []string{"first", "second", "third"} {
		req := shell("exec sleep 60")
		req.Tag = &tag
		req.Process.Envs = map[string]string{"TAG": tag}
		_, pids[tag] = begin(t, t.Context(), c, req)
	}
	list, err := c.List(t.Context(), &pb.ListRequest{})
	if err != nil || len(list.GetProcesses()) != 3 {
		t.Fatalf("list = %v, %v", list, err)
	}
	for _, p := range list.GetProcesses() {
		if pids[p.GetTag()] != p.GetPid() || p.GetConfig().GetCmd() != "/bin/sh" || p.GetConfig().GetEnvs()["TAG"] != p.GetTag() {
			t.Errorf("listed %v", p)
		}
	}
	// Every one is found by its tag, wherever it stands (B4).
	for tag := range pids {
		if _, err := c.SendSignal(t.Context(), &pb.SendSignalRequest{Process: byTag(tag), Signal: pb.Signal_SIGNAL_SIGTERM}); err != nil {
			t.Fatalf("%s: %v", tag, err)
		}
		if o := attach(t, c, byTag(tag)); o.pid != pids[tag] || o.end.GetStatus() != "signal: terminated" {
			t.Errorf("%s: %+v", tag, o)
		}
	}
	_, err = c.SendSignal(t.Context(), &pb.SendSignalRequest{Process: byTag("fourth"), Signal: pb.Signal_SIGNAL_SIGTERM})
	wantCode(t, err, connect.CodeNotFound, "process with tag 'fourth' not found")
	_, err = c.SendSignal(t.Context(), &pb.SendSignalRequest{Signal: pb.Signal_SIGNAL_SIGTERM})
	wantCode(t, err, connect.CodeInvalidArgument, "neither pid nor tag")
	_, err = c.SendSignal(t.Context(), &pb.SendSignalRequest{Process: byTag("first"), Signal: 2})
	wantCode(t, err, connect.CodeUnimplemented, "signal")
}

func TestProcessesOutliveTheirCallers(t *testing.T) {
	c := ready(t, api.GuestInit{}).process(nil)
	done := filepath.Join(t.TempDir(), "done")
	ctx, cancel := context.WithCancel(t.Context())
	// Far more than all buffers on the way: without a listener it must flow off.
	stream, pid := begin(t, ctx, c, shell("head -c 20000000 /dev/zero; echo ok > "+done))
	cancel()
	_ = stream.Close()
	eventually(t, "the process finishes without listeners", func() bool {
		content, err := os.ReadFile(done)
		return err == nil && string(content) == "ok\n"
	})
	if o := attach(t, c, byPID(pid)); o.end.GetExitCode() != 0 {
		t.Errorf("end = %v", o.end)
	}
}

func TestASlowListenerHoldsTheProcessBack(t *testing.T) {
	c := ready(t, api.GuestInit{}).process(nil)
	const size = 300 << 20 // more than all socket buffers on the way
	stream, pid := begin(t, t.Context(), c, &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "head", Args: []string{"-c", fmt.Sprint(size), "/dev/zero"}}})
	writing := func() bool {
		call, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
		return err == nil && strings.HasPrefix(string(call), "1 0x1 ") // write(1, …)
	}
	blocked := 0
	eventually(t, "the process waits in write", func() bool {
		if blocked++; !writing() {
			blocked = 0
		}
		return blocked > 20
	})
	var got int
	var end *pb.ProcessEvent_EndEvent
	for stream.Receive() {
		got += len(stream.Msg().GetEvent().GetData().GetStdout())
		end = stream.Msg().GetEvent().GetEnd()
	}
	if got != size || end.GetExitCode() != 0 || end == nil {
		t.Errorf("got %d bytes of %d, end = %v, %v", got, size, end, stream.Err())
	}
}

func TestTheDeadlineKills(t *testing.T) {
	d := ready(t, api.GuestInit{})
	c := d.process(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	stream, pid := begin(t, ctx, c, shell("exec sleep 60"))
	_ = stream.Close() // the deadline stays
	o := attach(t, c, byPID(pid))
	if o.end.GetStatus() != "signal: killed" || o.end.GetExitCode() != -1 {
		t.Errorf("end = %v", o.end)
	}
	// A timeout of zero is none.
	if o := run(t, d.process(map[string]string{"Connect-Timeout-Ms": "0"}), shell("sleep 0.1; echo alive")); o.stdout != "alive\n" {
		t.Errorf("outcome = %+v", o)
	}
}

// What a killed process leaves behind may hold its output open. The caller
// still learns of the end, and what was left behind lives on.
func TestKilledProcessesEndThoughTheirOutputIsHeldOpen(t *testing.T) {
	c := ready(t, api.GuestInit{}).process(nil)
	marker := filepath.Join(t.TempDir(), "survived")
	stream, pid := begin(t, t.Context(), c, shell("(sleep 2; echo more; echo yes > "+marker+") & echo started; wait"))
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	kill(t, c, pid)
	var o outcome
	for stream.Receive() {
		o.add(stream.Msg().GetEvent())
	}
	if o.end.GetStatus() != "signal: killed" {
		t.Errorf("end = %v, %v", o.end, stream.Err())
	}
	eventually(t, "the child survives writing", func() bool {
		_, err := os.Stat(marker)
		return err == nil
	})
}

func TestKeepalive(t *testing.T) {
	c := ready(t, api.GuestInit{}).process(map[string]string{"Keepalive-Ping-Interval": "1"})
	if o := run(t, c, shell("sleep 2.5")); o.keepalives != 2 {
		t.Errorf("keepalives = %d, want 2", o.keepalives)
	}
}

// "kill 0" in a command must not reach the daemon.
func TestCommandsHaveTheirOwnProcessGroup(t *testing.T) {
	c := ready(t, api.GuestInit{}).process(nil)
	if o := run(t, c, shell("kill -9 0")); o.end.GetStatus() != "signal: killed" {
		t.Errorf("end = %v", o.end)
	}
	if o := run(t, c, shell("echo alive")); o.stdout != "alive\n" {
		t.Errorf("outcome = %+v", o)
	}
}

func TestManyAtOnce(t *testing.T) {
	c := ready(t, api.GuestInit{}).process(nil)
	results := make(chan error)
	const n = 50
	for i := range n {
		go func() {
			stream, err := c.Start(t.Context(), shell(fmt.Sprintf("echo %d; exit %d", i, i)))
			var o outcome
			for err == nil && stream.Receive() {
				o.add(stream.Msg().GetEvent())
			}
			if err == nil && (o.stdout != fmt.Sprintf("%d\n", i) || o.end.GetExitCode() != int32(i)) {
				err = fmt.Errorf("%d: %+v, %w", i, o, stream.Err())
			}
			results <- err
		}()
	}
	for range n {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}
