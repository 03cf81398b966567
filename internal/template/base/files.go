package base

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Files is the root file system that a template will have, all but what is
// below usr. Names are relative to it.
type Files interface {
	// Find lists what there is by a pattern of path.Match.
	Find(pattern string) []string
	// Resolve follows links to the name of the file that a name means.
	Resolve(name string) (string, error)
	// Read returns the content of a file that is no link.
	Read(name string) ([]byte, error)
	// Write gives a name a new file, readable to all. It returns
	// fs.ErrPermission for what is below usr: that is the host's.
	Write(name, content string) error
}

var _ Files = plan{}

// Find implements Files.
func (p plan) Find(pattern string) (found []string) {
	for name := range p {
		if matched, err := path.Match(pattern, name); err == nil && matched {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found
}

// Resolve implements Files.
func (p plan) Resolve(name string) (string, error) {
	end, err := p.follow(name)
	if err != nil {
		return "", err
	}
	if _, ok := p[end]; !ok {
		return "", fmt.Errorf("%s: %w", end, fs.ErrNotExist)
	}
	return end, nil
}

// Read implements Files.
func (p plan) Read(name string) ([]byte, error) {
	e, ok := p[name]
	if !ok || !e.mode.IsRegular() {
		return nil, fmt.Errorf("%s is no file of the template: %w", name, fs.ErrNotExist)
	}
	return []byte(e.data), nil
}

// Write implements Files.
func (p plan) Write(name, content string) error {
	dir, err := p.follow(path.Dir(name))
	if err != nil {
		return err
	}
	if dir == "usr" || strings.HasPrefix(dir, "usr/") {
		return fs.ErrPermission
	}
	p.file(path.Join(dir, path.Base(name)), content, 0o644)
	return nil
}

// maxLinks bounds how many links are followed for one name, as Linux does.
const maxLinks = 40

// follow returns the name that is left when all links of a name are followed,
// whether there is such a file or not. Nothing is above the root.
func (p plan) follow(name string) (string, error) {
	name = path.Clean(name)
	for range maxLinks {
		next, ok := p.firstLink(name)
		if !ok {
			return name, nil
		}
		name = next
	}
	return "", errors.New("too many links: " + name)
}

// firstLink replaces the first part of a name that is a link by its target.
func (p plan) firstLink(name string) (next string, ok bool) {
	for end := range len(name) + 1 {
		if end < len(name) && name[end] != '/' {
			continue
		}
		if e, ok := p[name[:end]]; ok && e.mode.Type() == fs.ModeSymlink {
			target := e.data
			if !path.IsAbs(target) {
				target = path.Join("/", path.Dir(name[:end]), target)
			}
			return strings.TrimPrefix(path.Join(target, name[end:]), "/"), true
		}
	}
	return "", false
}
