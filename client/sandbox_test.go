package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/api/process"
	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/internal/guest"
)

const guestToken = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

// startGuest runs the real daemon on this machine and returns its URL. What it
// is told to run runs right here.
func startGuest(t *testing.T) string {
	t.Helper()
	server, err := guest.New(guest.Config{
		Addr: "127.0.0.1:0",
		Path: os.Getenv("PATH"),
		Root: t.TempDir(),
		Log:  slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("guest daemon: %v", err)
		}
	})
	url := "http://" + server.Addr().String()
	body, err := json.Marshal(api.GuestInit{AccessToken: guestToken, DefaultUser: "root", DefaultWorkdir: "/tmp"})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.Post(url+"/init", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusNoContent {
		t.Fatalf("init: %s", answer.Status)
	}
	return url
}

// openAt opens a sandbox whose daemon is at the URL.
func openAt(t *testing.T, url, token string) *client.Sandbox {
	t.Helper()
	c, err := client.New(client.Config{APIURL: url, SandboxURL: url, APIKey: testKey})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.Open(api.Sandbox{SandboxID: "iabc", EnvdAccessToken: token})
}

func openGuest(t *testing.T) *client.Sandbox { return openAt(t, startGuest(t), guestToken) }

func TestRun(t *testing.T) {
	box := openGuest(t)
	for _, c := range []struct {
		name           string
		command        client.Command
		user           string
		stdout, stderr string
		exit           client.Exit
	}{
		{name: "output and code", command: client.Command{Args: []string{"sh", "-c", "echo out; echo err >&2; exit 7"}},
			stdout: "out\n", stderr: "err\n", exit: client.Exit{Code: 7, Status: "exit status 7"}},
		{name: "no shell in between", command: client.Command{Args: []string{"printf", "%s|", "a b", "$HOME", ""}},
			stdout: "a b|$HOME||", exit: client.Exit{Status: "exit status 0"}},
		{name: "environment and directory", command: client.Command{
			Args: []string{"sh", "-c", "echo $A; pwd"}, Env: map[string]string{"A": "b"}, Dir: "/usr"},
			stdout: "b\n/usr\n", exit: client.Exit{Status: "exit status 0"}},
		{name: "user", user: "nobody", command: client.Command{Args: []string{"id", "-un"}, Dir: "/"},
			stdout: "nobody\n", exit: client.Exit{Status: "exit status 0"}},
		{name: "input", command: client.Command{Args: []string{"tr", "a-z", "A-Z"}, Stdin: strings.NewReader("hello")},
			stdout: "HELLO", exit: client.Exit{Status: "exit status 0"}},
		{name: "empty input", command: client.Command{Args: []string{"wc", "-c"}, Stdin: strings.NewReader("")},
			stdout: "0\n", exit: client.Exit{Status: "exit status 0"}},
		{name: "no input", command: client.Command{Args: []string{"cat"}}, exit: client.Exit{Status: "exit status 0"}},
		{name: "signal", command: client.Command{Args: []string{"sh", "-c", "kill -TERM $$"}},
			exit: client.Exit{Code: -1, Status: "signal: terminated"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			c.command.Stdout, c.command.Stderr = &stdout, &stderr
			exit, err := box.As(c.user).Commands.Run(t.Context(), c.command)
			if err != nil {
				t.Fatal(err)
			}
			if exit != c.exit || stdout.String() != c.stdout || stderr.String() != c.stderr {
				t.Errorf("got %+v, %q, %q", exit, stdout.String(), stderr.String())
			}
		})
	}
}

func TestMissingProgramIs127(t *testing.T) {
	var stderr bytes.Buffer
	exit, err := openGuest(t).Commands.Run(t.Context(), client.Command{Args: []string{"no-such-program"}, Stderr: &stderr})
	if err != nil || exit.Code != 127 || !strings.Contains(stderr.String(), "not found") {
		t.Errorf("got %+v, %v, %q", exit, err, stderr.String())
	}
}

func TestRefusedCommands(t *testing.T) {
	url := startGuest(t)
	box := openAt(t, url, guestToken)
	for _, c := range []struct {
		name string
		box  *client.Sandbox
		args []string
		dir  string
		want client.Error
	}{
		{"token", openAt(t, url, "wrong"), []string{"true"}, "", client.Error{Status: 401,
			Message: "unauthorized access, please provide a valid access token or method signing if supported"}},
		{"user", box.As("nosuch"), []string{"true"}, "", client.Error{Status: 401, Code: "unauthenticated", Message: "invalid username: 'nosuch'"}},
		{"directory", box, []string{"true"}, "/nosuch", client.Error{Status: 400, Code: "invalid_argument", Message: "cwd '/nosuch' does not exist"}},
	} {
		_, err := c.box.Commands.Run(t.Context(), client.Command{Args: c.args, Dir: c.dir})
		var refused *client.Error
		if !errors.As(err, &refused) || *refused != c.want {
			t.Errorf("%s: got %v, %+v, want %+v", c.name, err, refused, c.want)
		}
	}
	if _, err := box.Commands.Run(t.Context(), client.Command{}); err == nil {
		t.Error("no program: no error")
	}
}

func TestMuchGoesThrough(t *testing.T) {
	sent := bytes.Repeat([]byte("0123456789abcde\n"), 1<<19) // 8 MiB
	var got bytes.Buffer
	exit, err := openGuest(t).Commands.Run(t.Context(), client.Command{
		Args: []string{"cat"}, Stdin: bytes.NewReader(sent), Stdout: &got,
	})
	if err != nil || exit.Code != 0 || !bytes.Equal(got.Bytes(), sent) {
		t.Errorf("got %+v, %v, %d of %d bytes", exit, err, got.Len(), len(sent))
	}
}

// A command need not read its input, and may end before its input does.
func TestInputThatNobodyReads(t *testing.T) {
	box := openGuest(t)
	endless, writer := io.Pipe()
	defer writer.Close()
	for name, stdin := range map[string]io.Reader{
		"more than a pipe holds": strings.NewReader(strings.Repeat("x", 1<<20)),
		"never ends":             endless,
	} {
		exit, err := box.Commands.Run(t.Context(), client.Command{Args: []string{"true"}, Stdin: stdin})
		if err != nil || exit.Code != 0 {
			t.Errorf("%s: got %+v, %v", name, exit, err)
		}
	}
	var out bytes.Buffer
	exit, err := box.Commands.Run(t.Context(), client.Command{
		Args: []string{"sh", "-c", "exec <&-; sleep 0.2; echo done"}, Stdin: strings.NewReader(strings.Repeat("x", 1<<20)), Stdout: &out,
	})
	if err != nil || exit.Code != 0 || out.String() != "done\n" {
		t.Errorf("closed input: got %+v, %v, %q", exit, err, out.String())
	}
}

func TestBrokenInputIsReported(t *testing.T) {
	broken := io.MultiReader(strings.NewReader("some"), errReader{})
	var out bytes.Buffer
	_, err := openGuest(t).Commands.Run(t.Context(), client.Command{Args: []string{"cat"}, Stdin: broken, Stdout: &out})
	if !errors.Is(err, errBroken) || out.String() != "some" {
		t.Errorf("got %v, %q", err, out.String())
	}
}

var errBroken = errors.New("broken")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

// started calls back with the first output of a command.
type started func()

func (s started) Write(p []byte) (int, error) { s(); return len(p), nil }

// waitUntilNothingRuns fails when a command outlives its caller.
func waitUntilNothingRuns(t *testing.T, box *client.Sandbox) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		running, err := box.Commands.List(ctx)
		if err != nil {
			t.Fatalf("still running: %v", err)
		}
		if len(running) == 0 {
			return
		}
	}
}

func TestTheEndOfTheContextKillsTheCommand(t *testing.T) {
	box := openGuest(t)
	sleep := []string{"sh", "-c", "echo ready; exec sleep 1000"}

	ctx, cancel := context.WithCancel(t.Context())
	_, err := box.Commands.Run(ctx, client.Command{Args: sleep, Stdout: started(cancel)})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	waitUntilNothingRuns(t, box)

	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = box.Commands.Run(ctx, client.Command{Args: sleep})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timed out: got %v", err)
	}
	waitUntilNothingRuns(t, box)
}

// Output that cannot be written has nobody who wants it.
func TestFailedOutputKillsTheCommand(t *testing.T) {
	box := openGuest(t)
	reader, writer := io.Pipe()
	_ = reader.Close()
	_, err := box.Commands.Run(t.Context(), client.Command{Args: []string{"yes"}, Stdout: writer})
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
	waitUntilNothingRuns(t, box)
}

func TestSignals(t *testing.T) {
	box := openGuest(t)
	for want, send := range map[string]func(*client.Process, context.Context) error{
		"signal: killed":     (*client.Process).Kill,
		"signal: terminated": (*client.Process).Terminate,
	} {
		p, err := box.Commands.Start(t.Context(), client.Command{Args: []string{"sleep", "1000"}, Dir: "/usr"})
		if err != nil {
			t.Fatal(err)
		}
		running, err := box.Commands.List(t.Context())
		if err != nil || len(running) != 1 || running[0].PID != p.PID || running[0].Dir != "/usr" || strings.Join(running[0].Args, " ") != "sleep 1000" {
			t.Errorf("listed %+v, %v", running, err)
		}
		if err := send(p, t.Context()); err != nil {
			t.Error(err)
		}
		if exit, err := p.Wait(); err != nil || exit != (client.Exit{Code: -1, Status: want}) {
			t.Errorf("got %+v, %v, want %s", exit, err, want)
		}
		var refused *client.Error
		if err := p.Kill(t.Context()); !errors.As(err, &refused) || refused.Status != http.StatusNotFound {
			t.Errorf("kill after the end: got %v", err)
		}
	}
}

// screen collects what a terminal shows.
type screen struct {
	changed chan struct{} // has room for one
	mu      sync.Mutex
	shown   strings.Builder
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return s.shown.Write(p)
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown.String()
}

// waitFor returns once the text is shown.
func (s *screen) waitFor(ctx context.Context, text string) error {
	for !strings.Contains(s.text(), text) {
		select {
		case <-s.changed:
		case <-ctx.Done():
			return fmt.Errorf("%q does not appear in %q", text, s.text())
		}
	}
	return nil
}

func TestTerminal(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stdin, keyboard := io.Pipe()
	shown := &screen{changed: make(chan struct{}, 1)}
	p, err := openGuest(t).Commands.Start(ctx, client.Command{
		// The trap interrupts read.
		Args:  []string{"sh", "-c", "trap 'stty size' WINCH; stty size; until read a; do :; done; echo got $a; cat; echo end"},
		Stdin: stdin, Stdout: shown, Terminal: &client.Size{Cols: 80, Rows: 24},
	})
	if err != nil {
		t.Fatal(err)
	}
	typist := make(chan error, 1)
	go func() {
		typist <- errors.Join(
			shown.waitFor(ctx, "24 80\r\n"),
			p.Resize(ctx, client.Size{Cols: 132, Rows: 43}),
			shown.waitFor(ctx, "43 132\r\n"),
			write(keyboard, "hello\r"),
			shown.waitFor(ctx, "got hello\r\n"),
			keyboard.Close(), // the end of input ends cat
		)
	}()
	exit, err := p.Wait()
	if err := errors.Join(err, <-typist); err != nil || exit.Code != 0 || !strings.HasSuffix(shown.text(), "end\r\n") {
		t.Errorf("got %+v, %v, %q", exit, err, shown.text())
	}
}

func write(w io.Writer, text string) error {
	_, err := io.WriteString(w, text)
	return err
}

func TestHeadersForTheDaemon(t *testing.T) {
	server := serve(t, answer{status: 200, body: "content"})
	r, err := openAt(t, server.URL, guestToken).As("alice").Files.Read(t.Context(), "/a b")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if server.asked[0] != "GET /files?path=%2Fa+b&username=alice" {
		t.Errorf("asked %q", server.asked)
	}
	for name, want := range map[string]string{
		"E2b-Sandbox-Id": "iabc", "E2b-Sandbox-Port": "49983", "X-Access-Token": guestToken,
		"Authorization": "Basic YWxpY2U6", "X-Api-Key": "",
	} {
		if got := server.headers[0].Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// The gateway answers for a sandbox that is gone.
func TestGoneSandbox(t *testing.T) {
	gone := answer{status: 502, body: `{"sandboxId":"iabc","message":"The sandbox was not found","code":502}`}
	box := openAt(t, serve(t, gone, gone).URL, "")
	_, run := box.Commands.Run(t.Context(), client.Command{Args: []string{"true"}})
	_, read := box.Files.Read(t.Context(), "/x")
	for _, err := range []error{run, read} {
		var refused *client.Error
		if !errors.As(err, &refused) || refused.Status != http.StatusBadGateway || refused.Message != "The sandbox was not found" {
			t.Errorf("got %v", err)
		}
	}
}

// oddDaemon says what no honest daemon says: anything may run on its port.
type oddDaemon struct {
	process.UnimplementedProcessHandler
	events []*process.ProcessEvent
}

func (d oddDaemon) Start(_ context.Context, _ *process.StartRequest, stream *connect.ServerStream[process.StartResponse]) error {
	for _, e := range d.events {
		if err := stream.Send(&process.StartResponse{Event: e}); err != nil {
			return err
		}
	}
	return nil
}

func TestOddDaemons(t *testing.T) {
	begin := &process.ProcessEvent{Event: &process.ProcessEvent_Start{Start: &process.ProcessEvent_StartEvent{Pid: 1}}}
	end := &process.ProcessEvent{Event: &process.ProcessEvent_End{End: &process.ProcessEvent_EndEvent{}}}
	huge := &process.ProcessEvent{Event: &process.ProcessEvent_Data{Data: &process.ProcessEvent_DataEvent{
		Output: &process.ProcessEvent_DataEvent_Stdout{Stdout: make([]byte, 17<<20)},
	}}}
	for name, events := range map[string][]*process.ProcessEvent{
		"nothing":      nil,
		"empty events": {{}, nil},
		"no start":     {end},
		"no end":       {begin},
		"huge output":  {begin, huge, end},
	} {
		mux := http.NewServeMux()
		mux.Handle(process.NewProcessHandler(oddDaemon{events: events}))
		server := httptest.NewServer(mux)
		t.Cleanup(server.Close)
		exit, err := openAt(t, server.URL, "").Commands.Run(t.Context(), client.Command{Args: []string{"true"}})
		if err == nil {
			t.Errorf("%s: got %+v and no error", name, exit)
		}
	}
}
