package guest

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/moat-sandbox/moat/api"
	pb "github.com/moat-sandbox/moat/api/process"
)

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
