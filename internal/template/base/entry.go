package base

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"
)

// entry is one file of the root directory as it shall be. Its type is in mode:
// a directory, a symbolic link or a regular file.
type entry struct {
	mode     fs.FileMode
	uid, gid int
	data     string // content of a file, target of a link
}

// plan is the whole root directory, by path relative to it.
type plan map[string]entry

func (p plan) dir(name string, mode fs.FileMode) {
	p.parents(name)
	p[name] = entry{mode: fs.ModeDir | mode}
}

func (p plan) file(name, data string, mode fs.FileMode) {
	p.parents(name)
	p[name] = entry{mode: mode, data: data}
}

func (p plan) link(name, target string) {
	p.parents(name)
	p[name] = entry{mode: fs.ModeSymlink | 0o777, data: target}
}

// parents adds the directories above name that nobody has asked for yet.
func (p plan) parents(name string) {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if _, ok := p[dir]; !ok {
			p[dir] = entry{mode: fs.ModeDir | 0o755}
		}
	}
}

// converge makes the directory root equal to the plan and returns how many
// things it had to change. What is right is not touched: running sandboxes
// have it open. usr is left alone, a mount is or will be there.
func (p plan) converge(root string) (int, error) {
	if _, err := (entry{mode: fs.ModeDir | 0o755}).ensure(root); err != nil {
		return 0, fmt.Errorf("make the base template's root: %w", err)
	}
	changes, err := p.prune(root)
	if err != nil {
		return 0, err
	}
	names := make([]string, 0, len(p))
	for name := range p {
		names = append(names, name)
	}
	slices.Sort(names) // parents come before what is in them
	for _, name := range names {
		changed, err := p[name].ensure(filepath.Join(root, name))
		if err != nil {
			return 0, fmt.Errorf("make /%s of the base template: %w", name, err)
		}
		if changed {
			changes++
		}
	}
	return changes, nil
}

// prune removes what the plan does not have or has as another type.
func (p plan) prune(root string) (int, error) {
	removed := 0
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == root {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if rel == "usr" {
			return fs.SkipDir
		}
		if want, ok := p[rel]; ok && want.mode.Type() == d.Type() {
			return nil
		}
		removed++
		if err := os.RemoveAll(name); err != nil {
			return err
		}
		return skip(d)
	})
	return removed, err
}

// ensure makes one file and reports whether anything had to be done.
func (e entry) ensure(name string) (bool, error) {
	info, err := os.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, e.create(name)
	case err != nil:
		return false, err
	}
	same, err := e.matches(name, info)
	if err != nil || same {
		return false, err
	}
	if e.mode.IsDir() {
		return true, e.own(name)
	}
	return true, e.create(name)
}

func (e entry) matches(name string, info fs.FileInfo) (bool, error) {
	stat := info.Sys().(*syscall.Stat_t)
	if info.Mode() != e.mode || int(stat.Uid) != e.uid || int(stat.Gid) != e.gid {
		return false, nil
	}
	switch e.mode.Type() {
	case fs.ModeSymlink:
		target, err := os.Readlink(name)
		return target == e.data, err
	case fs.ModeDir:
		return true, nil
	}
	if info.Size() != int64(len(e.data)) {
		return false, nil
	}
	data, err := os.ReadFile(name)
	return bytes.Equal(data, []byte(e.data)), err
}

// create makes the file beside its place and moves it there, so that nobody
// ever sees half of it.
func (e entry) create(name string) error {
	if e.mode.IsDir() {
		if err := os.Mkdir(name, 0o700); err != nil {
			return err
		}
		return e.own(name)
	}
	temp := filepath.Join(filepath.Dir(name), ".new-"+filepath.Base(name))
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	var err error
	if e.mode.Type() == fs.ModeSymlink {
		err = os.Symlink(e.data, temp)
	} else {
		err = os.WriteFile(temp, []byte(e.data), 0o600)
	}
	if err == nil {
		err = e.own(temp)
	}
	if err == nil {
		err = os.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	return nil
}

func (e entry) own(name string) error {
	if err := os.Lchown(name, e.uid, e.gid); err != nil {
		return err
	}
	if e.mode.Type() == fs.ModeSymlink {
		return nil
	}
	return os.Chmod(name, e.mode)
}
