package template

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/template/erofs"
)

// guestName is the daemon's file name in both of its forms.
const guestName = "guest"

// BuildGuest lays the guest daemon out below dir, a directory for nothing else,
// in both forms that runtimes need and returns where they are; Args and Env are
// left to the caller. Names come from the content: what is there already is
// kept, and what boxes of an earlier version still use is never touched.
func BuildGuest(ctx context.Context, binary []byte, dir string) (sandbox.Guest, error) {
	if len(binary) == 0 {
		return sandbox.Guest{}, errors.New("lay out the guest daemon: it is empty")
	}
	if !filepath.IsAbs(dir) {
		return sandbox.Guest{}, fmt.Errorf("lay out the guest daemon: directory %q is not absolute", dir)
	}
	home := filepath.Join(dir, fmt.Sprintf("guest-%x", sha256.Sum256(binary)))
	if err := os.MkdirAll(home, 0o755); err != nil {
		return sandbox.Guest{}, fmt.Errorf("lay out the guest daemon: %w", full(err))
	}
	if err := removeTemporary(dir); err != nil {
		return sandbox.Guest{}, fmt.Errorf("lay out the guest daemon: %w", err)
	}
	if err := writeGuestFile(dir, filepath.Join(home, guestName), binary); err != nil {
		return sandbox.Guest{}, fmt.Errorf("lay out the guest daemon: %w", full(err))
	}
	image, err := buildGuestImage(ctx, binary, dir)
	if err != nil {
		return sandbox.Guest{}, fmt.Errorf("lay out the guest daemon: %w", err)
	}
	return sandbox.Guest{Image: image, Dir: home}, nil
}

// removeTemporary deletes what an interrupted BuildGuest left.
func removeTemporary(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, temporary))
	for _, name := range left {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

// writeGuestFile makes the file at path, by way of dir, unless it is there as
// it shall be.
func writeGuestFile(dir, path string, binary []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, binary) {
		return os.Chmod(path, 0o755)
	}
	f, err := os.CreateTemp(dir, temporary)
	if err != nil {
		return err
	}
	_, err = f.Write(binary)
	err = errors.Join(err, f.Chmod(0o755), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func buildGuestImage(ctx context.Context, binary []byte, dir string) (path string, err error) {
	d, err := newDraft(dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, d.discard()) }()
	data, err := d.Append(bytes.NewReader(binary))
	if err != nil {
		return "", full(err)
	}
	name, err := d.finish(ctx, &erofs.Node{
		Mode:     unix.S_IFDIR | 0o755,
		Children: map[string]*erofs.Node{guestName: {Mode: unix.S_IFREG | 0o755, Data: data}},
	})
	if err != nil {
		return "", err
	}
	path, _, err = d.publish("guest-" + name)
	return path, err
}
