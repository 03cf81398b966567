package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestIsGVisor(t *testing.T) {
	for _, c := range []struct {
		args []string
		want bool
	}{
		{[]string{"runsc-sandbox", "boot"}, true},
		{[]string{"runsc-gofer"}, true},
		{[]string{"/proc/self/exe", "umount", "--sync-fd=3", "/proc"}, true},
		{[]string{"/proc/self/exe", "serve"}, false},
		{[]string{"/proc/self/exe"}, false},
		{[]string{"moat", "umount"}, false},
		{[]string{"/usr/local/bin/moat", "serve"}, false},
		{nil, false},
	} {
		if got := isGVisor(c.args); got != c.want {
			t.Errorf("%q: %v", c.args, got)
		}
	}
}

func TestCounter(t *testing.T) {
	const text = "low 0\nmax 5\noom 2\noom_kill 12\noom_group_kill 3\n"
	for name, want := range map[string]int64{"oom_kill": 12, "oom": 2, "low": 0, "other": 0, "oom_group": 0} {
		if got := counter(text, name); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
}

// TestProcessIdentity: a number alone does not make a process ours, and a
// process's name cannot lie about when it started.
func TestProcessIdentity(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x) S 1 1 1 (")
	if err := os.Symlink("/usr/bin/sleep", name); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	start, err := startTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if own, err := startTime(os.Getpid()); err != nil || start < own {
		t.Errorf("a child started at %d, its parent at %d (%v)", start, own, err)
	}
	if _, err := openProcess(cmd.Process.Pid, start+1); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("another process with the same number: %v", err)
	}
	p, err := openProcess(cmd.Process.Pid, start)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := p.killAndWait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.kill(); err != nil {
		t.Errorf("killing it again: %v", err)
	}
	if _, err := openProcess(cmd.Process.Pid, start); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("an ended process: %v", err)
	}
}

// TestHostileSentry: what a sentry answers is bounded in size and time.
func TestHostileSentry(t *testing.T) {
	endless := bytes.Repeat([]byte("["), 1<<20)
	for name, c := range map[string]struct {
		answer []byte
		want   string
	}{
		"endless": {endless, "read answer"},
		"garbage": {[]byte("HTTP/1.1 200 OK\r\n\r\n"), "read answer"},
		"refusal": {[]byte(`{"success":false,"err":"no"}`), "no"},
		"empty":   {[]byte(`{}`), ""},
		"silence": {nil, context.DeadlineExceeded.Error()},
		"success": {[]byte(`{"success":true,"result":7}`), "<nil>"},
	} {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if conn, err := l.Accept(); err == nil {
				_, _ = conn.Write(c.answer) // the other side may have had enough
			}
		}()
		ctl, err := dialControl(path)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		var result int
		err = ctl.call(ctx, "method", "arg", nil, &result)
		cancel()
		ctl.close()
		if (err == nil) != (name == "success") || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFixedFile: a guest cannot make the host store what it writes.
func TestFixedFile(t *testing.T) {
	f, err := fixedFile("stderr", 4)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := f.Write([]byte("abcdef")); n > 4 || err == nil {
		t.Errorf("wrote %d bytes to a file of 4: %v", n, err)
	}
	if err := f.Truncate(100); err == nil {
		t.Error("the file grew")
	}
}

// TestPauseImage: the program must be a page, or gVisor cannot map it.
func TestPauseImage(t *testing.T) {
	if n := len(pauseProgramELF()); n != 4096 {
		t.Errorf("the pause program has %d bytes", n)
	}
	dir := t.TempDir()
	path := dir + "/pause.erofs"
	for range 2 { // the second replaces the first
		if err := writePauseImage(path); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("writing left %v, %v", left, err)
	}
}
