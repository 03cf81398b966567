package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/app"
)

// examine runs `moat doctor` with a given outcome.
func examine(t *testing.T, dataDir string, report app.Report, failure error, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	c := &cli{
		stdout: &out, stderr: &errs, env: map[string]string{"MOAT_DATA_DIR": dataDir},
		doctor: func(_ context.Context, config app.Config) (app.Report, error) {
			if config.DataDir != dataDir || config.Logger == nil {
				t.Errorf("configuration did not arrive: %+v", config)
			}
			return report, failure
		},
	}
	code = c.main(t.Context(), append([]string{"doctor"}, args...))
	return code, out.String(), errs.String()
}

func TestDoctorReports(t *testing.T) {
	fine := app.Finding{Level: app.OK, Subject: "user", Detail: "root"}
	poor := app.Finding{Level: app.Warn, Subject: "memory", Detail: "little\x1b[2J"}
	bad := app.Finding{Level: app.Fail, Subject: "kernel", Detail: "too old"}
	dir := t.TempDir()
	code, out, _ := examine(t, dir, app.Report{Findings: []app.Finding{fine, poor}}, nil)
	if want := "ok    user    root\nwarn  memory  little?[2J\nok    server  none is running in " + dir + "\n"; code != exitOK || out != want {
		t.Errorf("exit code %d, %q, want %q", code, out, want)
	}
	code, out, stderr := examine(t, dir, app.Report{Findings: []app.Finding{fine, bad}, Isolation: "none"}, nil, "--json")
	var report app.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != exitError || stderr != "" {
		t.Errorf("exit code %d, %v, %q, stderr %q", code, err, out, stderr)
	}
	if len(report.Findings) != 3 || report.Findings[1] != bad || report.Isolation != "none" {
		t.Errorf("got %+v", report)
	}
	code, _, stderr = examine(t, dir, app.Report{}, errors.New("look at network: broken"))
	if code != exitError || stderr != "moat: look at network: broken\n" {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}

func TestDoctorLooksForTheServer(t *testing.T) {
	server := startServer(t, t.TempDir())
	operatorOf(t, server)
	if _, out, _ := examine(t, server.dataDir, app.Report{}, nil); out != "ok  server  running, sandboxes: 1\n" {
		t.Errorf("running: got %q", out)
	}
	// A socket that nobody answers on any more.
	dir := t.TempDir()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, app.SocketName)})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if _, out, _ := examine(t, dir, app.Report{}, nil); !strings.HasPrefix(out, "warn  server  does not answer: ") {
		t.Errorf("dead: got %q", out)
	}
	c := &cli{env: map[string]string{"MOAT_DATA_DIR": dir}}
	if _, err := c.operator(); err == nil || !strings.HasPrefix(err.Error(), "no server answers at ") {
		t.Errorf("dead socket: got %v", err)
	}
}
