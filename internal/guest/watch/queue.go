package watch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// run empties the kernel's queue whenever something is in it, so that it does
// not overflow and new directories are watched soon.
func (w *Watcher) run() {
	defer close(w.done)
	conn, err := w.queue.SyscallConn()
	if err != nil {
		return // closed already
	}
	for err == nil {
		err = conn.Read(func(uintptr) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.drain()
		})
	}
}

// drain reads the kernel's queue until it is empty and reports whether anything
// was in it.
func (w *Watcher) drain() (any bool) {
	var buf [16 << 10]byte
	for w.failed == nil {
		n, err := w.read(buf[:])
		if err != nil {
			w.fail(fmt.Errorf("read events: %w", err))
		}
		if n <= 0 {
			break
		}
		any = true
		w.parse(buf[:n])
	}
	// What was found in new directories before the queue was empty has been
	// announced by the kernel by now, if at all.
	clear(w.announced)
	if len(w.pending) > 0 || w.failed != nil {
		select {
		case w.ready <- struct{}{}:
		default:
		}
	}
	return any
}

// read returns 0 when the queue is empty or closed.
func (w *Watcher) read(buf []byte) (int, error) {
	conn, err := w.queue.SyscallConn()
	if err != nil {
		return 0, nil
	}
	n, failed := 0, error(nil)
	if err := conn.Control(func(fd uintptr) { n, failed = unix.Read(int(fd), buf) }); err != nil {
		return 0, nil
	}
	if errors.Is(failed, unix.EAGAIN) || errors.Is(failed, unix.EINTR) {
		return 0, nil
	}
	return n, failed
}

func (w *Watcher) fail(err error) {
	if w.failed == nil {
		w.failed = err
	}
}

// parse takes the kernel's records apart.
func (w *Watcher) parse(buf []byte) {
	for len(buf) >= unix.SizeofInotifyEvent {
		raw := (*unix.InotifyEvent)(unsafe.Pointer(&buf[0]))
		size := unix.SizeofInotifyEvent + int(raw.Len)
		if size > len(buf) {
			w.fail(errors.New("read events: a record is cut short"))
			return
		}
		name := strings.TrimRight(string(buf[unix.SizeofInotifyEvent:size]), "\x00")
		w.record(raw.Wd, raw.Mask, name)
		buf = buf[size:]
	}
}

// record handles one record of the kernel: a name in a directory, or without a
// name the directory itself.
func (w *Watcher) record(wd int32, mask uint32, name string) {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		w.fail(ErrOverflow)
		return
	}
	dir, known := w.dirs[wd]
	if mask&unix.IN_IGNORED != 0 {
		delete(w.dirs, wd)
		return
	}
	if !known {
		return // of a directory that has moved away
	}
	if name == "" {
		// The parent tells the rest; the watched directory has no parent here.
		if dir == w.config.Dir && mask&unix.IN_DELETE_SELF != 0 {
			w.report(dir, Remove)
		} else if dir == w.config.Dir && mask&unix.IN_MOVE_SELF != 0 {
			w.report(dir, Rename)
		}
		return
	}
	path := filepath.Join(dir, name)
	if mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0 {
		w.appeared(path, mask&unix.IN_ISDIR != 0)
	}
	if mask&unix.IN_MOVED_FROM != 0 {
		w.report(path, Rename)
		if mask&unix.IN_ISDIR != 0 {
			w.forget(path)
		}
	}
	if mask&unix.IN_ATTRIB != 0 {
		w.report(path, Chmod)
	}
	if mask&unix.IN_MODIFY != 0 {
		w.report(path, Write)
	}
	if mask&unix.IN_DELETE != 0 {
		w.report(path, Remove)
	}
}

// appeared reports a new entry. Below a new directory there may already be
// entries that were made before it was watched.
func (w *Watcher) appeared(path string, isDir bool) {
	if _, twice := w.announced[path]; twice {
		return
	}
	w.report(path, Create)
	if !isDir || !w.config.Recursive {
		return
	}
	err := w.config.User.Do(func() error {
		if err := w.add(path); err != nil {
			return err
		}
		return w.addBelow(path, func(found string) {
			w.announced[found] = struct{}{}
			w.report(found, Create)
		})
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
		w.fail(err)
	}
}

func (w *Watcher) report(path string, kind Kind) {
	if len(w.pending) >= maxPending {
		w.fail(ErrOverflow)
		return
	}
	name, err := filepath.Rel(w.config.Dir, path)
	if err != nil {
		name = path
	}
	w.pending = append(w.pending, Event{Path: path, Name: name, Kind: kind})
}
