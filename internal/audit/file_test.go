package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/audit"
)

// openFile opens and runs a file. The function it returns stops it, which
// writes what was appended before.
func openFile(t testing.TB, cfg audit.FileConfig) (f *audit.File, stop func()) {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	f, err := audit.OpenFile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	return f, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// lines reads a file and parses each line.
func lines(t *testing.T, path string) (all []map[string]any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		m := make(map[string]any)
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Errorf("line %q: %v", line, err)
		}
		all = append(all, m)
	}
	return all
}

func TestFileHoldsRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f, stop := openFile(t, audit.FileConfig{Path: path})
	l := newLog(t, audit.Config{File: f})
	r := sample("a")
	l.Append(r)
	l.Append(audit.Record{Sandbox: "b", Protocol: audit.HTTP, Method: "GET", Path: "/x", Status: 403})
	stop()
	got := lines(t, path)
	if len(got) != 2 {
		t.Fatalf("%d lines, want 2", len(got))
	}
	for field, want := range map[string]any{
		"sandbox": "a", "decision": r.ID.String(), "direction": "out", "protocol": "tls",
		"address": "93.184.216.34", "port": 443.0, "name": "api.example.com", "verdict": "allow",
		"rule": "allowOut", "entry": "*.example.com", "generation": 3.0,
		"bytesUp": 517.0, "bytesDown": 4096.0, "durationMs": 12.345,
	} {
		if got[0][field] != want {
			t.Errorf("%s is %v, want %v", field, got[0][field], want)
		}
	}
	if m := got[1]; m["method"] != "GET" || m["path"] != "/x" || m["status"] != 403.0 || m["verdict"] != "deny" || m["address"] != nil {
		t.Errorf("second line is %v", m)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file %v, %v: want it private", info.Mode(), err)
	}
}

func TestFileRotates(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	const size = 4096
	total := 0
	for range 40 { // each run writes what it has as one batch
		f, stop := openFile(t, audit.FileConfig{Path: path, MaxBytes: size, Keep: 2})
		l := newLog(t, audit.Config{File: f})
		for range 3 {
			l.Append(sample(fmt.Sprint("s", total)))
			total++
		}
		stop()
	}
	names, err := filepath.Glob(dir + "/*")
	if err != nil || len(names) != 3 {
		t.Fatalf("files %v, %v; want the current one and 2 older", names, err)
	}
	next := total
	for _, name := range []string{path, path + ".1", path + ".2"} {
		if info, err := os.Stat(name); err != nil || info.Size() > size {
			t.Errorf("%s has %d bytes, %v", name, info.Size(), err)
		}
		got := lines(t, name)
		next -= len(got)
		for i, m := range got {
			if want := fmt.Sprint("s", next+i); m["sandbox"] != want {
				t.Errorf("%s line %d is of %v, want %s", name, i, m["sandbox"], want)
			}
		}
	}
}

func TestFileEndsATornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.WriteFile(path, []byte("{\"torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, stop := openFile(t, audit.FileConfig{Path: path})
	l := newLog(t, audit.Config{File: f})
	add(l, "a", "whole")
	stop()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	torn, rest, _ := strings.Cut(string(text), "\n")
	if torn != "{\"torn" || !json.Valid([]byte(rest)) {
		t.Errorf("the file is %q", text)
	}
}

// A queue that nobody empties drops records, and a line tells how many.
func TestFileDropsAndSaysSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f, err := audit.OpenFile(audit.FileConfig{Path: path, Queue: 2, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l := newLog(t, audit.Config{File: f})
	add(l, "a", "1", "2", "3", "4", "5") // returns, though nobody writes
	if f.Dropped() != 3 {
		t.Errorf("%d records dropped, want 3", f.Dropped())
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Run(ended); err != nil {
		t.Fatal(err)
	}
	got := lines(t, path)
	if len(got) != 3 || got[0]["dropped"] != 3.0 || got[1]["reason"] != "1" || got[2]["reason"] != "2" {
		t.Errorf("lines are %v", got)
	}
	wantReasons(t, l.Query(audit.Filter{Sandbox: "a"}), "1 2 3 4 5") // the log in memory is not concerned
}

// A disk that refuses writes costs records, not the server; the operator is
// told once, and again when it is over.
func TestFileSurvivesABrokenDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	path := filepath.Join(dir, "audit.jsonl")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var messages bytes.Buffer
	write := func(text string, break_ bool) *audit.File {
		f, err := audit.OpenFile(audit.FileConfig{Path: path, MaxBytes: 1, Keep: 1, Logger: slog.New(slog.NewTextHandler(&messages, nil))})
		if err != nil {
			t.Fatal(err)
		}
		l := newLog(t, audit.Config{File: f})
		add(l, "a", text)
		if break_ { // the next file cannot be made where there is a directory in its place
			if err := os.MkdirAll(path+".1/full", 0o700); err != nil {
				t.Fatal(err)
			}
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := f.Run(ended); err != nil {
			t.Fatal(err)
		}
		return f
	}
	write("1", false)
	if f := write("2", true); f.Dropped() != 1 || strings.Count(messages.String(), "cannot be written") != 1 {
		t.Errorf("%d dropped, log says %s", f.Dropped(), messages.String())
	}
	if err := os.RemoveAll(path + ".1"); err != nil {
		t.Fatal(err)
	}
	write("3", false)
	if got := lines(t, path); len(got) != 1 || got[0]["reason"] != "3" {
		t.Errorf("after the repair the file is %v", got)
	}
}

func TestOpenFileRefusesNonsense(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, cfg := range []audit.FileConfig{
		{Logger: log},
		{Path: t.TempDir() + "/a"},
		{Path: t.TempDir() + "/a", Logger: log, MaxBytes: -1},
		{Path: t.TempDir() + "/a", Logger: log, Keep: -1},
		{Path: t.TempDir() + "/a", Logger: log, Queue: -1},
		{Path: t.TempDir() + "/no/such/dir", Logger: log},
	} {
		if f, err := audit.OpenFile(cfg); err == nil || f != nil {
			t.Errorf("%+v gives %v, %v", cfg, f, err)
		}
	}
}
