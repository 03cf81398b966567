// Package image holds the built guest daemon, so that the server is one file.
package image

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
)

// The pattern lets the server be built without the daemon, which only "make
// build" puts here: then it matches nothing but the note beside it.
//
//go:embed moat-guest*
var files embed.FS

// ErrMissing means that the server was built without the daemon.
var ErrMissing = errors.New(`the guest daemon is not part of this binary; build it with "make build"`)

// Binary returns the guest daemon, an executable for the server's platform.
func Binary() ([]byte, error) { return binary(files) }

func binary(from fs.FS) ([]byte, error) {
	content, err := fs.ReadFile(from, "moat-guest")
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(content) == 0 {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("read embedded guest daemon: %w", err)
	}
	return content, nil
}
