package template

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/template/erofs"
)

// Names of the daemon and its setup in both of their forms.
const (
	guestName = "guest"
	setupName = "setup"
)

// BuildGuest lays the guest daemon and its setup out below dir, a directory for
// nothing else, in both forms that runtimes need and returns where they are and
// how to run it; Env is left to the caller. Names come from the content: what is
// there already is kept, and what boxes of an earlier version still use is never
// touched.
func BuildGuest(ctx context.Context, binary, setup []byte, dir string) (sandbox.Guest, error) {
	if len(binary) == 0 {
		return sandbox.Guest{}, errors.New("lay out the guest daemon: it is empty")
	}
	if !filepath.IsAbs(dir) {
		return sandbox.Guest{}, fmt.Errorf("lay out the guest daemon: directory %q is not absolute", dir)
	}
	files := []guestFile{{guestName, 0o755, binary}, {setupName, 0o644, setup}}
	home := filepath.Join(dir, fmt.Sprintf("guest-%x", guestSum(files)))
	if err := os.MkdirAll(home, 0o755); err != nil {
		return sandbox.Guest{}, fmt.Errorf("lay out the guest daemon: %w", full(err))
	}
	if err := removeTemporary(dir); err != nil {
		return sandbox.Guest{}, fmt.Errorf("lay out the guest daemon: %w", err)
	}
	for _, f := range files {
		if err := f.write(dir, home); err != nil {
			return sandbox.Guest{}, fmt.Errorf("lay out the guest daemon: %w", full(err))
		}
	}
	image, err := buildGuestImage(ctx, files, dir)
	if err != nil {
		return sandbox.Guest{}, fmt.Errorf("lay out the guest daemon: %w", err)
	}
	args := []string{"--setup", path.Join(sandbox.GuestDir, setupName)}
	return sandbox.Guest{Image: image, Dir: home, Args: args}, nil
}

// guestFile is one of the files in a guest's image.
type guestFile struct {
	name    string
	mode    os.FileMode // permissions
	content []byte
}

// guestSum tells sets of files apart.
func guestSum(files []guestFile) []byte {
	all := sha256.New()
	for _, f := range files {
		sum := sha256.Sum256(f.content)
		all.Write(sum[:])
	}
	return all.Sum(nil)
}

// removeTemporary deletes what an interrupted BuildGuest left.
func removeTemporary(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, temporary))
	for _, name := range left {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

// write makes the file in home, by way of dir, unless it is there as it shall be.
func (g guestFile) write(dir, home string) error {
	path := filepath.Join(home, g.name)
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, g.content) {
		return os.Chmod(path, g.mode)
	}
	f, err := os.CreateTemp(dir, temporary)
	if err != nil {
		return err
	}
	_, err = f.Write(g.content)
	err = errors.Join(err, f.Chmod(g.mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func buildGuestImage(ctx context.Context, files []guestFile, dir string) (path string, err error) {
	d, err := newDraft(dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, d.discard()) }()
	root := &erofs.Node{Mode: unix.S_IFDIR | 0o755, Children: map[string]*erofs.Node{}}
	for _, f := range files {
		data, err := d.Append(bytes.NewReader(f.content))
		if err != nil {
			return "", full(err)
		}
		root.Children[f.name] = &erofs.Node{Mode: unix.S_IFREG | uint16(f.mode), Data: data}
	}
	name, err := d.finish(ctx, root)
	if err != nil {
		return "", err
	}
	path, _, err = d.publish("guest-" + name)
	return path, err
}
