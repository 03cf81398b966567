package bolt

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// reserveBytes is kept allocated beyond the pages in use. bbolt never writes in
// place, so even a deletion needs fresh pages; without them a full device could
// not be emptied by deleting.
const reserveBytes = 1 << 20

// reserve holds room on the device for the transactions to come. bbolt's writer
// lock guards it.
type reserve struct {
	file *os.File // bbolt's own; it closes it
	end  int64    // up to where the file is known to be allocated
}

// openFile opens the file for bbolt and remembers it.
func (r *reserve) openFile(name string, flag int, mode os.FileMode) (*os.File, error) {
	file, err := os.OpenFile(name, flag, mode)
	r.file = file
	return file, err
}

// ensure allocates the reserve behind a store of the given size, of which free
// bytes are unused pages: where the device gives no more, those will do.
func (r *reserve) ensure(size, free int64) error {
	if r.end >= size+reserveBytes {
		return nil
	}
	// Twice the reserve, so that this is rarely called; the file's size is
	// bbolt's business and stays.
	end := size + 2*reserveBytes
	err := unix.Fallocate(int(r.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, end)
	switch {
	case err == nil, errors.Is(err, unix.EOPNOTSUPP):
		r.end = end
		return nil
	case free >= 2*reserveBytes:
		return nil
	}
	return fmt.Errorf("reserve %d bytes: %w", end, err)
}
