package setup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Disk is the root file system in a directory: "/" in a sandbox. Links in it are
// followed wherever they lead.
type Disk string

var _ Files = Disk("")

// Find implements Files. Glob would read every directory on the way, and system
// calls are what a sandbox's start consists of.
func (d Disk) Find(pattern string) (found []string) {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		if _, err := os.Lstat(d.path(pattern)); err == nil {
			found = append(found, pattern)
		}
		return found
	}
	dir, prefix := filepath.Split(head)
	entries, _ := os.ReadDir(d.path(dir)) // where there is none, there is nothing in it
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			found = append(found, d.Find(dir+e.Name()+rest)...)
		}
	}
	return found
}

// Resolve implements Files.
func (d Disk) Resolve(name string) (string, error) {
	path, err := filepath.EvalSymlinks(d.path(name))
	if err != nil {
		return "", err
	}
	return filepath.Rel(string(d), path)
}

// Read implements Files.
func (d Disk) Read(name string) ([]byte, error) { return os.ReadFile(d.path(name)) }

// Write implements Files.
func (d Disk) Write(name, content string) error {
	path := d.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return replace(path, content)
}

func (d Disk) path(name string) string { return filepath.Join(string(d), name) }

// replace gives a name another file, not what it may point to another content:
// images ship /etc/resolv.conf as a link into a directory that does not exist
// here, and what is below a writable layer need not be copied up. Where that
// cannot be done, because something is mounted there, the content is replaced.
func replace(path, content string) error {
	temporary := path + ".moat"
	err := os.WriteFile(temporary, []byte(content), 0o644)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		_ = os.Remove(temporary) // may never have existed
		if errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EXDEV) {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
	}
	return err
}
