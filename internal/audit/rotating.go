package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// rotating is a file that makes room for a new one when it is full.
type rotating struct {
	path string
	max  int64 // bytes
	keep int   // older files

	file *os.File // nil after it could not be opened; the next write tries again
	size int64
	torn bool // the last line has no end
}

// open opens the current file for appending.
func (r *rotating) open() error {
	file, err := os.OpenFile(r.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return errors.Join(err, file.Close())
	}
	// The server may have died in the middle of a line.
	var last [1]byte
	if size > 0 {
		if _, err := file.ReadAt(last[:], size-1); err != nil {
			return errors.Join(err, file.Close())
		}
	}
	r.file, r.size, r.torn = file, size, size > 0 && last[0] != '\n'
	return nil
}

// write appends whole lines.
func (r *rotating) write(lines []byte) error {
	if r.file != nil && r.size > 0 && r.size+int64(len(lines)) > r.max {
		if err := r.rotate(); err != nil {
			return err
		}
	}
	if r.file == nil {
		if err := r.open(); err != nil {
			return err
		}
	}
	if r.torn {
		if _, err := r.file.WriteString("\n"); err != nil {
			return err
		}
		r.size++
		r.torn = false
	}
	n, err := r.file.Write(lines)
	r.size += int64(n)
	r.torn = err != nil && n > 0
	return err
}

// rotate moves every file one place on; the oldest gives way.
func (r *rotating) rotate() error {
	if err := r.close(); err != nil {
		return err
	}
	for i := r.keep; i > 0; i-- {
		if err := os.Rename(r.name(i-1), r.name(i)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (r *rotating) name(i int) string {
	if i == 0 {
		return r.path
	}
	return fmt.Sprintf("%s.%d", r.path, i)
}

func (r *rotating) close() error {
	if r.file == nil {
		return nil
	}
	err := errors.Join(r.file.Sync(), r.file.Close())
	r.file = nil
	return err
}
