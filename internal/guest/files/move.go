package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	pb "github.com/moat-sandbox/moat/api/filesystem"
	"github.com/moat-sandbox/moat/internal/guest/wire"
)

// Move implements pb.FilesystemHandler.
func (s *Service) Move(ctx context.Context, req *pb.MoveRequest) (*pb.MoveResponse, error) {
	caller, err := wire.From(ctx, s.sessions)
	if err != nil {
		return nil, err
	}
	source := caller.Settings.Path(caller.User, req.GetSource())
	entry, err := s.entry(ctx, req.GetDestination(), func(destination string) error {
		// Looked at first, so that a mistake leaves no empty directories.
		if _, err := os.Lstat(source); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(destination), newDirMode); err != nil {
			return err
		}
		return move(source, destination)
	})
	if err != nil {
		return nil, err
	}
	return &pb.MoveResponse{Entry: entry}, nil
}

// move renames, or copies and removes where the two are on different file
// systems (/tmp often is another one).
func move(source, destination string) error {
	err := os.Rename(source, destination)
	if !errors.Is(err, syscall.EXDEV) {
		return err
	}
	if destination == source || strings.HasPrefix(destination, source+"/") {
		return &os.LinkError{Op: "move", Old: source, New: destination, Err: syscall.EINVAL}
	}
	// Beside the destination first: it is replaced in one step, or not at all.
	temporary, err := os.MkdirTemp(filepath.Dir(destination), ".moving-")
	if err != nil {
		return err
	}
	half := filepath.Join(temporary, filepath.Base(destination))
	if err = copyTree(source, half); err == nil {
		err = os.Rename(half, destination)
	}
	if cleared := os.RemoveAll(temporary); err == nil {
		err = cleared
	}
	if err != nil {
		return fmt.Errorf("move to another file system: %w", err)
	}
	return os.RemoveAll(source)
}

// copyTree copies files, directories and links with their modes, times and, as
// far as the user may set it, ownership. Other kinds cannot be copied.
func copyTree(source, destination string) error {
	info, err := os.Lstat(source)
	if err != nil {
		return err
	}
	switch {
	case info.Mode().IsRegular():
		err = copyFile(source, destination)
	case info.IsDir():
		err = copyDirectory(source, destination)
	case info.Mode()&fs.ModeSymlink != 0:
		var target string
		if target, err = os.Readlink(source); err == nil {
			err = os.Symlink(target, destination)
		}
	default:
		err = &fs.PathError{Op: "copy", Path: source, Err: syscall.EINVAL}
	}
	if err != nil {
		return err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		if err := os.Lchown(destination, int(stat.Uid), int(stat.Gid)); err != nil {
			return err
		}
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return nil // has neither mode nor times of interest
	}
	if err := os.Chmod(destination, info.Mode()); err != nil {
		return err
	}
	return os.Chtimes(destination, info.ModTime(), info.ModTime())
}

func copyDirectory(source, destination string) error {
	if err := os.Mkdir(destination, 0o700); err != nil {
		return err
	}
	children, err := os.ReadDir(source)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := copyTree(filepath.Join(source, child.Name()), filepath.Join(destination, child.Name())); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(source, destination string) error {
	from, err := os.Open(source)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(destination, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	if err == nil {
		if data := readMetadata(source); data != nil {
			err = replaceMetadata(to, data)
		}
	}
	return errors.Join(err, to.Close())
}
