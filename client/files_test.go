package client_test

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/client"
)

func TestFiles(t *testing.T) {
	box := openGuest(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "new/dir/a file")
	content := strings.Repeat("content\n", 100_000)
	if err := box.Files.Write(t.Context(), path, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	r, err := box.Files.Read(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil || string(got) != content {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if entry, err := box.Files.Stat(t.Context(), path); err != nil || entry.Size != int64(len(content)) || entry.Name != "a file" {
		t.Errorf("stat: %v, %v", entry, err)
	}
	if err := box.Files.Rename(t.Context(), path, filepath.Join(dir, "new/b")); err != nil {
		t.Error(err)
	}
	if err := box.Files.MakeDir(t.Context(), filepath.Join(dir, "new/c")); err != nil {
		t.Error(err)
	}
	entries, err := box.Files.List(t.Context(), filepath.Join(dir, "new"))
	if err != nil || len(entries) != 3 || entries[0].Name != "b" || entries[1].Name != "c" || entries[2].Name != "dir" {
		t.Errorf("list: %v, %v", entries, err)
	}
	if err := box.Files.Remove(t.Context(), filepath.Join(dir, "new")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}

func TestRefusedFiles(t *testing.T) {
	box := openGuest(t)
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing")
	for name, c := range map[string]struct {
		call func() error
		want int
	}{
		"read missing":  {func() error { _, err := box.Files.Read(t.Context(), missing); return err }, http.StatusNotFound},
		"read dir":      {func() error { _, err := box.Files.Read(t.Context(), dir); return err }, http.StatusBadRequest},
		"stat missing":  {func() error { _, err := box.Files.Stat(t.Context(), missing); return err }, http.StatusNotFound},
		"list missing":  {func() error { _, err := box.Files.List(t.Context(), missing); return err }, http.StatusNotFound},
		"make existing": {func() error { return box.Files.MakeDir(t.Context(), dir) }, http.StatusConflict},
		"move missing":  {func() error { return box.Files.Rename(t.Context(), missing, missing+"2") }, http.StatusNotFound},
		"unknown user": {func() error {
			return box.As("nosuch").Files.Write(t.Context(), missing, strings.NewReader(""))
		}, http.StatusUnauthorized},
	} {
		var refused *client.Error
		if err := c.call(); !errors.As(err, &refused) || refused.Status != c.want || refused.Message == "" {
			t.Errorf("%s: got %v, want status %d", name, err, c.want)
		}
	}
}
