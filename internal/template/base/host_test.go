package base

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// marker is in every file of the made-up host that no sandbox may see.
const marker = "TOP-SECRET"

const keyFile = "-----BEGIN RSA PRIVATE KEY-----\n" + marker + "\n"

// host makes the root directory of a machine: name -> content. A name that
// ends in "/" is a directory, a content that begins with "->" a link.
func host(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, data := range map[string]string{
		"bin": "->usr/bin", "lib": "->usr/lib", "usr/bin/sh": "#!", "usr/bin/bash": "#!", "usr/bin/python3": "#!",
		"usr/lib/libc.so": "library", "usr/local/bin/tool": "#!",
		"etc/ssl/certs/ca-certificates.crt": "-----BEGIN CERTIFICATE-----\n",
	} {
		write(t, root, name, data)
	}
	for name, data := range files {
		write(t, root, name, data)
	}
	return root
}

func write(t *testing.T, root, name, data string) {
	t.Helper()
	full := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	switch target, isLink := strings.CutPrefix(data, "->"); {
	case isLink:
		err = os.Symlink(target, full)
	case strings.HasSuffix(name, "/"):
		err = os.MkdirAll(full, 0o755)
	default:
		err = os.WriteFile(full, []byte(data), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, root, name string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(filepath.Join(root, name), mode); err != nil {
		t.Fatal(err)
	}
}

// ensure makes the base template of a host and takes it down after the test.
func ensure(t *testing.T, dir, hostRoot string) (*Base, Made) {
	t.Helper()
	b, err := New(Config{Dir: dir, Host: hostRoot})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Unmount(); err != nil {
			t.Error(err)
		}
	})
	made, err := b.Ensure(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Complete(); err != nil {
		t.Fatal(err)
	}
	return b, made
}

// leaks reads every file below root, as root may, and lists those that hold
// the marker.
func leaks(t *testing.T, root string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(name)
		if bytes.Contains(data, []byte(marker)) {
			found = append(found, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
