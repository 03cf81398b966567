// Package watch reports what happens below a directory.
//
// It reads inotify itself instead of through a goroutine and a channel, so that
// Take returns everything that happened before it was called: callers who poll
// right after a write rely on that.
package watch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/guest/account"
)

// Kind is what happened to an entry.
type Kind uint8

// The kinds of events, in the order in which they are reported when one cause
// has several.
const (
	Create Kind = iota + 1
	Rename      // away: its new name, if watched, is a Create
	Chmod
	Write
	Remove
)

// Event is one thing that happened.
type Event struct {
	Path string // absolute
	Name string // relative to the watched directory; "." is that itself
	Kind Kind
}

// maxPending bounds the events that wait for a caller who does not come.
const maxPending = 1 << 16

// Errors that end a watcher.
var (
	// ErrOverflow means that events were lost.
	ErrOverflow = errors.New("too many file system events, some were lost")
	// ErrNetworkMount means that the directory is on a network file system,
	// where what other machines do goes unseen.
	ErrNetworkMount = errors.New("directory is on a network file system")
)

// Config says what to watch.
type Config struct {
	Dir       string // absolute and clean
	Recursive bool
	// User is with whose rights directories are looked into.
	User account.User
	// NetworkMounts allows directories on network file systems.
	NetworkMounts bool
}

// Watcher watches one directory until it is closed.
type Watcher struct {
	config Config
	queue  *os.File // inotify's
	ready  chan struct{}
	done   chan struct{} // closed when the reading goroutine has ended

	mu      sync.Mutex // guards the kernel's queue being read, and what follows
	dirs    map[int32]string
	pending []Event
	failed  error
	// announced are entries found while a new directory was searched. The
	// kernel may announce them too.
	announced map[string]struct{}
}

const interest = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
	unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// New starts to watch. The directory must exist and be one.
func New(c Config) (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", c.Dir, err)
	}
	w := &Watcher{
		config:    c,
		queue:     os.NewFile(uintptr(fd), "inotify"),
		ready:     make(chan struct{}, 1),
		done:      make(chan struct{}),
		dirs:      make(map[int32]string),
		announced: make(map[string]struct{}),
	}
	if err := c.User.Do(w.begin); err != nil {
		return nil, errors.Join(err, w.queue.Close())
	}
	go w.run()
	return w, nil
}

// Close ends the watcher.
func (w *Watcher) Close() error {
	err := w.queue.Close()
	<-w.done
	return err
}

// Ready yields whenever there is something new to take.
func (w *Watcher) Ready() <-chan struct{} { return w.ready }

// Take returns what has happened since it was called last. An error comes after
// the last event and stays.
func (w *Watcher) Take() ([]Event, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drain()
	events := w.pending
	w.pending = nil
	if len(events) > 0 {
		return events, nil
	}
	return nil, w.failed
}

// begin checks the directory and adds the first watches, as the user.
func (w *Watcher) begin() error {
	info, err := os.Stat(w.config.Dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return &os.PathError{Op: "watch", Path: w.config.Dir, Err: unix.ENOTDIR}
	}
	if remote, err := onNetwork(w.config.Dir); err != nil {
		return err
	} else if remote && !w.config.NetworkMounts {
		return fmt.Errorf("watch %s: %w", w.config.Dir, ErrNetworkMount)
	}
	if err := w.add(w.config.Dir); err != nil {
		return err
	}
	if w.config.Recursive {
		return w.addBelow(w.config.Dir, func(string) {})
	}
	return nil
}

// onNetwork reports whether a path is on NFS, SMB or FUSE.
func onNetwork(path string) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return false, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	switch uint32(fs.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC:
		return true, nil
	}
	return false, nil
}

// add watches one directory, which the calling thread's user must be allowed
// to read. Linux checks that itself; gVisor does not.
func (w *Watcher) add(dir string) error {
	readable, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := readable.Close(); err != nil {
		return err
	}
	mask := uint32(interest)
	if dir != w.config.Dir {
		mask |= unix.IN_DONT_FOLLOW
	}
	wd, err := unix.InotifyAddWatch(int(w.queue.Fd()), dir, mask)
	if err != nil {
		return &os.PathError{Op: "watch", Path: dir, Err: err}
	}
	w.dirs[int32(wd)] = dir
	return nil
}

// addBelow watches all directories below one and names every entry it finds.
// Directories that vanish or may not be looked into are left out.
func (w *Watcher) addBelow(dir string, found func(path string)) error {
	children, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, child := range children {
		path := filepath.Join(dir, child.Name())
		found(path)
		if !child.IsDir() {
			continue
		}
		err := w.add(path)
		if err == nil {
			err = w.addBelow(path, found)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			return err
		}
	}
	return nil
}

// forget stops watching a directory that has moved away and all below it.
func (w *Watcher) forget(dir string) {
	for wd, path := range w.dirs {
		if path == dir || strings.HasPrefix(path, dir+"/") {
			delete(w.dirs, wd)
			// Fails when the directory is gone, which is as good.
			_, _ = unix.InotifyRmWatch(int(w.queue.Fd()), uint32(wd))
		}
	}
}
