package wire

import (
	"errors"
	"io/fs"
	"syscall"

	"connectrpc.com/connect"
)

// FileError gives an error of a file operation the code that clients expect.
// An error that has a code already keeps it.
func FileError(err error) error {
	var coded *connect.Error
	if err == nil || errors.As(err, &coded) {
		return err
	}
	return connect.NewError(fileCode(err), err)
}

func fileCode(err error) connect.Code {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return connect.CodeNotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return connect.CodePermissionDenied
	case errors.Is(err, syscall.ENOTEMPTY), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.EBUSY):
		// ENOTEMPTY before ErrExist, which includes it.
		return connect.CodeFailedPrecondition
	case errors.Is(err, fs.ErrExist):
		return connect.CodeAlreadyExists
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENAMETOOLONG):
		return connect.CodeInvalidArgument
	case NoSpace(err), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return connect.CodeResourceExhausted
	}
	return connect.CodeInternal
}

// NoSpace reports whether a write failed because the disk or a quota is full.
func NoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
