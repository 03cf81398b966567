package template

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/moat-sandbox/moat/internal/store"
	"github.com/moat-sandbox/moat/internal/template/erofs"
)

// Bounds of one image.
const (
	maxImageBytes = 64 << 30
	maxImageFiles = 2_000_000
)

// temporary is the pattern of file names that mean nothing after a restart.
const temporary = "new-*"

// draft is an image under construction in a temporary file.
type draft struct {
	*erofs.Writer
	file *os.File
}

// newDraft starts an image in dir. The caller must call discard, before or
// after publish.
func newDraft(dir string) (*draft, error) {
	f, err := os.CreateTemp(dir, temporary)
	if err != nil {
		return nil, full(err)
	}
	w, err := erofs.NewWriter(f, maxImageBytes)
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return &draft{Writer: w, file: f}, nil
}

// discard closes the file and removes it where it has not been published.
func (d *draft) discard() error {
	err := d.file.Close()
	if removed := os.Remove(d.file.Name()); !errors.Is(removed, fs.ErrNotExist) {
		err = errors.Join(err, removed)
	}
	return err
}

// finish writes the tree, makes the file durable and returns the name that its
// content gives it.
func (d *draft) finish(ctx context.Context, root *erofs.Node) (string, error) {
	if err := d.Finish(root); err != nil {
		return "", full(err)
	}
	if err := d.file.Sync(); err != nil {
		return "", full(fmt.Errorf("sync image: %w", err))
	}
	if _, err := d.file.Seek(0, io.SeekStart); err != nil {
		return "", fmt.Errorf("read image back: %w", err)
	}
	sum := sha256.New()
	buf := make([]byte, 1<<20)
	for {
		n, err := d.file.Read(buf)
		sum.Write(buf[:n])
		if err == io.EOF {
			return hex.EncodeToString(sum.Sum(nil)) + ".erofs", nil
		}
		if err != nil {
			return "", fmt.Errorf("read image back: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return "", err
		}
	}
}

// publish gives the finished image its name in its directory. One of that name
// has the same content and is kept: sandboxes may run from it.
func (d *draft) publish(name string) (path string, size int64, err error) {
	path = filepath.Join(filepath.Dir(d.file.Name()), name)
	info, err := d.file.Stat()
	if err != nil {
		return "", 0, fmt.Errorf("publish image: %w", err)
	}
	if old, err := os.Lstat(path); err == nil && old.Mode().IsRegular() && old.Size() == info.Size() {
		return path, info.Size(), nil
	}
	if err := os.Rename(d.file.Name(), path); err != nil {
		return "", 0, fmt.Errorf("publish image: %w", full(err))
	}
	return path, info.Size(), syncDir(filepath.Dir(path))
}

// syncDir makes what was renamed in dir durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync directory: %w", full(err))
	}
	return nil
}

// full marks errors that mean "no room left" as store.ErrFull.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", store.ErrFull, err)
	}
	return err
}
