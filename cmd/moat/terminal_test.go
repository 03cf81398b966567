package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
)

// person is somebody at a terminal in which moat runs.
type person struct {
	t           *testing.T
	keys, tty   *os.File // the two sides of the terminal
	before      unix.Termios
	moat        *exec.Cmd
	mu          sync.Mutex
	shown       strings.Builder // guarded by mu
	read        int             // how much of it waitFor is past
	changed     chan struct{}   // has room for one
	watchedTill chan struct{}   // closed when the terminal is
}

// sitDown starts `moat exec -it` on a terminal of 80 by 24.
func sitDown(t *testing.T, server *testServer, args ...string) *person {
	t.Helper()
	keys, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := pty.Setsize(tty, &pty.Winsize{Cols: 80, Rows: 24}); err != nil {
		t.Fatal(err)
	}
	p := &person{t: t, keys: keys, tty: tty, changed: make(chan struct{}, 1), watchedTill: make(chan struct{})}
	p.before = p.modes()
	p.moat = moat(t, server, append([]string{"exec", "-it"}, args...)...)
	p.moat.Stdin, p.moat.Stdout, p.moat.Stderr = tty, tty, tty
	p.moat.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := p.moat.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.watchedTill)
		_, _ = io.Copy(p, keys) // ends with an error when the terminal is closed
	}()
	t.Cleanup(func() {
		_ = p.moat.Process.Kill() // has ended unless the test failed
		_ = tty.Close()
		_ = keys.Close()
		<-p.watchedTill
	})
	return p
}

func (p *person) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case p.changed <- struct{}{}:
	default:
	}
	return p.shown.Write(b)
}

func (p *person) sees() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shown.String()
}

// waitFor reads on until the text appears.
func (p *person) waitFor(text string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	for {
		if at := strings.Index(p.sees()[p.read:], text); at >= 0 {
			p.read += at + len(text)
			return
		}
		select {
		case <-p.changed:
		case <-ctx.Done():
			p.t.Fatalf("%q does not appear in %q", text, p.sees()[p.read:])
		}
	}
}

func (p *person) types(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.keys, text); err != nil {
		p.t.Fatal(err)
	}
}

func (p *person) modes() unix.Termios {
	p.t.Helper()
	modes, err := unix.IoctlGetTermios(int(p.tty.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	return *modes
}

// getsUp waits for the end of moat and checks what it leaves behind.
func (p *person) getsUp(code int) {
	p.t.Helper()
	_ = p.moat.Wait() // the code says it
	if got := p.moat.ProcessState.ExitCode(); got != code {
		p.t.Errorf("exit code %d, want %d; the terminal shows %q", got, code, p.sees())
	}
	if p.modes() != p.before {
		p.t.Error("the terminal was not put back")
	}
}

// operatorOf speaks to the test's server and makes a sandbox there.
func operatorOf(t *testing.T, server *testServer) (c *client.Client, id string) {
	t.Helper()
	c, err := client.New(client.Config{Socket: server.dataDir + "/moat.sock"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	home := t.TempDir()
	if err := os.WriteFile(home+"/.profile", []byte("PS1='ask> '\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	made, err := c.CreateSandbox(t.Context(), api.NewSandbox{TemplateID: "base", EnvVars: map[string]string{"HOME": home}})
	if err != nil {
		t.Fatal(err)
	}
	return c, made.SandboxID
}

func TestTerminalIsUsable(t *testing.T) {
	server := startServer(t, t.TempDir())
	_, id := operatorOf(t, server)
	p := sitDown(t, server, id)

	// Like a person, it types when the shell asks: what comes earlier may be
	// flushed when the shell sets the terminal up.
	p.waitFor("ask> ")
	p.types("echo sum=$((40+2)) term=$TERM on=$(stty size)\r")
	p.waitFor("sum=42 term=xterm on=24 80\r\n")
	if raw := p.modes(); raw.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
		t.Errorf("the terminal is not raw: %#x", raw.Lflag)
	}

	// Ctrl-C interrupts what runs inside, not moat.
	p.waitFor("ask> ")
	p.types("sh -c 'echo be\"\"gin; exec sleep 5217'\r")
	p.waitFor("begin\r\n")
	p.types("\x03")
	p.waitFor("ask> ")
	p.types("echo code=$?\r")
	p.waitFor("code=130\r\n")

	// The terminal inside has the size of the one outside.
	p.waitFor("ask> ")
	p.types("until [ \"$(stty size)\" = '43 132' ]; do :; done; echo resi''zed\r")
	if err := pty.Setsize(p.tty, &pty.Winsize{Cols: 132, Rows: 43}); err != nil {
		t.Fatal(err)
	}
	p.waitFor("resized\r\n")

	p.waitFor("ask> ")
	p.types("exit 3\r")
	p.getsUp(3)
}

func TestTerminalWithoutASize(t *testing.T) {
	keys, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	defer tty.Close()
	if size, err := terminalSize(tty); err != nil || *size != (client.Size{Cols: 80, Rows: 24}) {
		t.Errorf("got %v, %v", size, err)
	}
}

func TestTerminalIsPutBack(t *testing.T) {
	// Who runs the tests may ignore hang-ups (nohup). Catching them keeps the
	// programs started here from inheriting that.
	hangUps := make(chan os.Signal, 1)
	signal.Notify(hangUps, syscall.SIGHUP)
	defer signal.Stop(hangUps)
	server := startServer(t, t.TempDir())
	c, id := operatorOf(t, server)
	for name, end := range map[string]struct {
		by   func(*person) error
		code int
	}{
		"terminated": {func(p *person) error { return p.moat.Process.Signal(syscall.SIGTERM) }, exitInterrupt},
		"hung up":    {func(p *person) error { return p.moat.Process.Signal(syscall.SIGHUP) }, exitInterrupt},
		"end of input": {func(p *person) error {
			_, err := io.WriteString(p.keys, "\x04")
			return err
		}, exitOK},
	} {
		t.Run(name, func(t *testing.T) {
			p := sitDown(t, server, id, "sh", "-c", "echo ready; cat; exit 0")
			p.waitFor("ready\r\n")
			if err := end.by(p); err != nil {
				t.Fatal(err)
			}
			p.getsUp(end.code)
		})
	}
	t.Run("no such program", func(t *testing.T) { sitDown(t, server, id, "nosuch").getsUp(127) })
	t.Run("time is over", func(t *testing.T) { sitDown(t, server, "--timeout", "300ms", id, "cat").getsUp(exitTimeout) })
	t.Run("refused", func(t *testing.T) { sitDown(t, server, "-w", "/nosuch", id, "cat").getsUp(exitExec) })
	t.Run("sandbox killed", func(t *testing.T) {
		p := sitDown(t, server, id, "sh", "-c", "echo ready; exec cat")
		p.waitFor("ready\r\n")
		if err := c.Kill(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		p.getsUp(exitExec)
		p.waitFor("moat: ")
	})
}
