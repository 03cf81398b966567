package guest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/moat-sandbox/moat/api"
	pb "github.com/moat-sandbox/moat/api/process"
)

// A sandbox that nobody claims runs a command by itself, of which nothing is
// seen afterwards.
func TestRehearsal(t *testing.T) {
	d := start(t)
	eventually(t, "a rehearsal", func() bool { return strings.Contains(d.log.String(), "rehearsed") })
	if log := d.log.String(); strings.Count(log, "process started") != 1 || strings.Contains(log, "error") {
		t.Errorf("the daemon says:\n%s", log)
	}
	if status, body := d.init(api.GuestInit{}, ""); status != 204 {
		t.Fatalf("init: %d %s", status, body)
	}
	if list, err := d.process(nil).List(t.Context(), &pb.ListRequest{}); err != nil || len(list.GetProcesses()) != 0 {
		t.Errorf("processes: %v, %v", list, err)
	}
}

// A rehearsal under way does not keep the daemon from ending: start sees to that.
func TestEndInRehearsal(t *testing.T) {
	d := start(t)
	eventually(t, "a rehearsal", func() bool { return strings.Contains(d.log.String(), "process started") })
	d.stop()
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
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
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
