// Package erofs writes EROFS images, the read-only filesystem that gVisor and
// Linux mount, from a tree in memory and file data streamed to disk.
//
// It writes the strict subset that both can use: 4 KiB blocks, no compression,
// no extended attributes (gVisor rejects inodes that have any), and every
// regular file in whole blocks of its own, because gVisor maps files straight
// from the image and can neither map nor execute one whose data is packed
// behind its inode. The same input gives the same bytes.
//
// The format: https://docs.kernel.org/filesystems/erofs.html
package erofs

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// BlockSize is the unit of allocation, in bytes.
const BlockSize = 4096

// ErrTooLarge is returned when an image would outgrow its limit.
var ErrTooLarge = errors.New("image is too large")

// maxBytes is what 32-bit block addresses can name.
const maxBytes = (1<<32 - 1) * int64(BlockSize)

// chunkSize is how much file data is read and written at once. A chunk of
// zeros is not written but left as a hole.
const chunkSize = 16 * BlockSize

// Extent is where the data of one file lies in the image.
type Extent struct {
	Offset int64 // a multiple of BlockSize
	Size   int64 // bytes of data; what follows up to the block's end is zero
}

// Writer writes one image: first file data, in any order, then the tree.
// It is not safe for concurrent use.
type Writer struct {
	file  *os.File
	limit int64
	end   int64 // where the next block goes
	chunk []byte
	used  int64 // bytes appended
}

// NewWriter starts an image in file, which must be empty and which the caller
// keeps and closes. Appending more than limit bytes, discarded ones included,
// fails with ErrTooLarge.
func NewWriter(file *os.File, limit int64) (*Writer, error) {
	if limit <= 0 || limit > maxBytes {
		return nil, fmt.Errorf("image limit %d: not between 1 and %d bytes", limit, maxBytes)
	}
	// Block 0 is the superblock's.
	return &Writer{file: file, limit: limit, end: BlockSize, chunk: make([]byte, chunkSize)}, nil
}

// Append copies r to its end into the image. When it fails the image is as it
// was before.
func (w *Writer) Append(r io.Reader) (_ Extent, err error) {
	defer func() {
		if err != nil {
			// Chunks of zeros are not written, so leftovers would shine through.
			err = errors.Join(err, w.file.Truncate(w.end))
		}
	}()
	ext := Extent{Offset: w.end}
	for {
		n, err := io.ReadFull(r, w.chunk)
		if w.used+ext.Size+int64(n) > w.limit || ext.Offset+ext.Size+int64(n) > maxBytes {
			return Extent{}, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, w.limit)
		}
		if !allZero(w.chunk[:n]) {
			if _, err := w.file.WriteAt(w.chunk[:n], ext.Offset+ext.Size); err != nil {
				return Extent{}, fmt.Errorf("write image data: %w", err)
			}
		}
		ext.Size += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return Extent{}, err
		}
	}
	w.end += roundUp(ext.Size)
	w.used += ext.Size
	return ext, nil
}

// Room is how many more bytes may be appended.
func (w *Writer) Room() int64 { return w.limit - w.used }

// Data reads back what Append wrote.
func (w *Writer) Data(ext Extent) *io.SectionReader {
	return io.NewSectionReader(w.file, ext.Offset, ext.Size)
}

// Discard says that nothing refers to ext any more. Its blocks are given back
// to the disk; where the file system cannot do that they are only wasted.
func (w *Writer) Discard(ext Extent) {
	if ext.Size > 0 {
		_ = unix.Fallocate(int(w.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
			ext.Offset, roundUp(ext.Size))
	}
}

// Finish writes the tree below root, which must be a directory, and the
// superblock. It does not sync. The Writer is of no use afterwards.
func (w *Writer) Finish(root *Node) error {
	plan, err := planLayout(root, w.end)
	if err != nil {
		return err
	}
	if plan.end > maxBytes {
		return fmt.Errorf("%w: %d bytes", ErrTooLarge, plan.end)
	}
	if err := plan.writeDirectories(w.file); err != nil {
		return fmt.Errorf("write image directories: %w", err)
	}
	if err := plan.writeInodes(w.file); err != nil {
		return fmt.Errorf("write image inodes: %w", err)
	}
	// The superblock comes last: an image that was cut short is no image.
	if _, err := w.file.WriteAt(plan.superblock(), 0); err != nil {
		return fmt.Errorf("write image superblock: %w", err)
	}
	// Holes at the end are part of the image too.
	if err := w.file.Truncate(plan.end); err != nil {
		return fmt.Errorf("set image size: %w", err)
	}
	return nil
}

func roundUp(n int64) int64 { return (n + BlockSize - 1) &^ (BlockSize - 1) }

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroBlock))
		if string(b[:n]) != string(zeroBlock[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

var zeroBlock [BlockSize]byte
