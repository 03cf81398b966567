// Package files gives callers the sandbox's files: the filesystem service for
// names and directories, /files for contents. Everything is done with the
// rights of the user the caller chose, not with the daemon's.
package files

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"connectrpc.com/connect"

	pb "github.com/moat-sandbox/moat/api/filesystem"
	"github.com/moat-sandbox/moat/internal/guest/account"
	"github.com/moat-sandbox/moat/internal/guest/session"
	"github.com/moat-sandbox/moat/internal/guest/wire"
)

// newDirMode is the mode of directories made for a caller.
const newDirMode = 0o755

// Service implements pb.FilesystemHandler.
type Service struct {
	sessions *session.Store

	mu       sync.Mutex
	watchers map[string]*polled // by id
}

// NewService returns the service for the users of the current session.
func NewService(sessions *session.Store) *Service {
	return &Service{sessions: sessions, watchers: make(map[string]*polled)}
}

// Stat implements pb.FilesystemHandler.
func (s *Service) Stat(ctx context.Context, req *pb.StatRequest) (*pb.StatResponse, error) {
	entry, err := s.entry(ctx, req.GetPath(), func(string) error { return nil })
	if err != nil {
		return nil, err
	}
	return &pb.StatResponse{Entry: entry}, nil
}

// MakeDir implements pb.FilesystemHandler.
func (s *Service) MakeDir(ctx context.Context, req *pb.MakeDirRequest) (*pb.MakeDirResponse, error) {
	entry, err := s.entry(ctx, req.GetPath(), func(path string) error {
		info, err := os.Stat(path)
		switch {
		case err == nil && info.IsDir():
			return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.EEXIST}
		case err == nil:
			return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
		}
		return os.MkdirAll(path, newDirMode)
	})
	if err != nil {
		return nil, err
	}
	return &pb.MakeDirResponse{Entry: entry}, nil
}

// entry does something about a path as the caller, then describes the path.
func (s *Service) entry(ctx context.Context, path string, do func(path string) error) (*pb.EntryInfo, error) {
	caller, err := wire.From(ctx, s.sessions)
	if err != nil {
		return nil, err
	}
	book, err := account.Open()
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	var entry *pb.EntryInfo
	err = caller.User.Do(func() (err error) {
		path := caller.Settings.Path(caller.User, path)
		if err = do(path); err == nil {
			entry, err = describe(path, book)
		}
		return err
	})
	return entry, wire.FileError(err)
}

// Remove implements pb.FilesystemHandler.
func (s *Service) Remove(ctx context.Context, req *pb.RemoveRequest) (*pb.RemoveResponse, error) {
	caller, err := wire.From(ctx, s.sessions)
	if err != nil {
		return nil, err
	}
	path := caller.Settings.Path(caller.User, req.GetPath())
	if path == "/" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("path: the root directory cannot be removed"))
	}
	if err := caller.User.Do(func() error { return os.RemoveAll(path) }); err != nil {
		return nil, wire.FileError(err)
	}
	return &pb.RemoveResponse{}, nil
}

// ListDir implements pb.FilesystemHandler.
func (s *Service) ListDir(ctx context.Context, req *pb.ListDirRequest) (*pb.ListDirResponse, error) {
	caller, err := wire.From(ctx, s.sessions)
	if err != nil {
		return nil, err
	}
	book, err := account.Open()
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	l := &listing{ctx: ctx, book: book}
	path := caller.Settings.Path(caller.User, req.GetPath())
	if err := caller.User.Do(func() error { return l.directory(path, max(req.GetDepth(), 1)) }); err != nil {
		return nil, wire.FileError(err)
	}
	return &pb.ListDirResponse{Entries: l.entries}, nil
}

// listing collects the entries below a directory, each directory followed by
// its own.
type listing struct {
	ctx     context.Context
	book    *account.Book
	entries []*pb.EntryInfo
}

func (l *listing) directory(dir string, depth uint32) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	children, err := os.ReadDir(dir) // ENOTDIR for a file
	if err != nil {
		return err
	}
	slices.SortFunc(children, func(a, b os.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	for _, child := range children {
		path := filepath.Join(dir, child.Name())
		entry, err := describe(path, l.book)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, err)
		}
		l.entries = append(l.entries, entry)
		if depth <= 1 || !child.IsDir() {
			continue
		}
		// What the user may not look into is still listed itself.
		err = l.directory(path, depth-1)
		if err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
