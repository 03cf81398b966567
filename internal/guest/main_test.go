package guest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/moat-sandbox/moat/api"
)

// asInit makes the test binary be the daemon, so that it can be process 1 of a
// namespace. Its value is the root directory.
const asInit = "GUEST_TEST_AS_INIT"

func TestMain(m *testing.M) {
	if root := os.Getenv(asInit); root != "" {
		if err := serveAsInit(root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func serveAsInit(root string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends with the test's process
		stop()
	}()
	s, err := New(Config{Addr: "127.0.0.1:0", Init: os.Getpid() == 1, Path: testPath, Root: root, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "address.part"), []byte(s.Addr().String()), 0o644); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(root, "address.part"), filepath.Join(root, "address")); err != nil {
		return err
	}
	return s.Run(ctx)
}

// asProcess1 runs the daemon as process 1 of its own PID namespace.
func asProcess1(t *testing.T) (*daemon, *exec.Cmd) {
	t.Helper()
	d := &daemon{t: t, root: t.TempDir()}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = []string{asInit + "=" + d.root}
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil { // open as long as we live
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	eventually(t, "the daemon listens", func() bool {
		addr, err := os.ReadFile(filepath.Join(d.root, "address"))
		d.url = "http://" + string(addr)
		return err == nil
	})
	if status, body := d.init(api.GuestInit{}, ""); status != 204 {
		t.Fatalf("init: %d %s", status, body)
	}
	return d, cmd
}

// children returns the states of a process's children, such as "SZ".
func children(t *testing.T, pid int) (states string) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if fields[1] == fmt.Sprint(pid) {
			states += fields[0]
		}
	}
	return states
}

func TestProcess1CollectsOrphansAndKeepsItsOwn(t *testing.T) {
	d, cmd := asProcess1(t)
	c := d.process(nil)
	for range 20 {
		// Orphans die before, while and after their parent is waited for.
		o := run(t, c, shell("for i in 1 2 3; do (sleep 0.0$i; exit 7) >/dev/null 2>&1 & done; (exit 8) & exit 5"))
		if o.end.GetExitCode() != 5 {
			t.Fatalf("end = %v, want exit code 5", o.end)
		}
	}
	eventually(t, "no child is left", func() bool { return children(t, cmd.Process.Pid) == "" })
}

func TestProcess1EndsOnSIGTERM(t *testing.T) {
	d, cmd := asProcess1(t)
	stream, _ := begin(t, t.Context(), d.process(nil), shell("trap '' TERM; sleep 60"))
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
	for stream.Receive() {
		if stream.Msg().GetEvent().GetEnd() != nil {
			return
		}
	}
	if stream.Err() == nil {
		t.Error("the stream ended as if all was well")
	}
}
