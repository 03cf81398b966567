package template

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
	"github.com/moat-sandbox/moat/internal/template/rootfs"
)

// defaultPath is the search path of templates that say nothing about it.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// source is one way to fill an image.
type source struct {
	// description says in words what it is, for people.
	description string
	// fill adds the files and says what the source wants for commands.
	fill func(ctx context.Context, b *rootfs.Builder) (settings, error)
}

// settings are what a source says about running commands.
type settings struct {
	rootfs.Defaults
	Env []string
}

// AddDir makes a template of a copy of a directory of this machine. Names that
// belong to other templates move to it. What other file systems have mounted
// below the directory is left out.
func (l *Library) AddDir(ctx context.Context, dir string, names []string) (store.Template, error) {
	if err := l.checkDir(dir); err != nil {
		return store.Template{}, fmt.Errorf("add template from directory %s: %w", dir, err)
	}
	return l.add(ctx, names, source{
		description: "directory " + dir,
		fill: func(ctx context.Context, b *rootfs.Builder) (settings, error) {
			return settings{}, b.AddDir(ctx, dir)
		},
	})
}

// checkDir refuses directories that no template can be meant to show.
func (l *Library) checkDir(dir string) error {
	if !filepath.IsAbs(dir) {
		return errors.New("the path is not absolute")
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	own, err := filepath.EvalSymlinks(l.dir)
	if err != nil {
		return err
	}
	if within(own, real) {
		return errors.New("it contains this server's own data")
	}
	if within(real, own) {
		return errors.New("it is part of this server's own data")
	}
	return nil
}

// within reports whether path is dir or below it. Both are clean.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// AddTar makes a template of a tar archive of this machine, plain or
// compressed with gzip, zstd or bzip2. Names that belong to other templates
// move to it.
func (l *Library) AddTar(ctx context.Context, path string, names []string) (store.Template, error) {
	if !filepath.IsAbs(path) {
		return store.Template{}, fmt.Errorf("add template from archive %s: the path is not absolute", path)
	}
	return l.add(ctx, names, source{
		description: "archive " + path,
		fill: func(ctx context.Context, b *rootfs.Builder) (settings, error) {
			f, err := os.Open(path)
			if err != nil {
				return settings{}, err
			}
			defer f.Close()
			if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
				return settings{}, errors.Join(errors.New("not a regular file"), err)
			}
			r, err := decompress(f)
			if err != nil {
				return settings{}, err
			}
			if err := errors.Join(b.AddTar(ctx, r), r.Close()); err != nil {
				return settings{}, err
			}
			return settings{}, checkArchive(b)
		},
	})
}

// checkArchive refuses archives of images in place of archives of files.
func checkArchive(b *rootfs.Builder) error {
	if (b.Exists("manifest.json") || b.Exists("oci-layout")) && !b.Exists("etc") && !b.Exists("bin") && !b.Exists("usr") {
		return errors.New("this is a saved container image, not a root filesystem: export a container instead, or add the image from a registry")
	}
	return nil
}

// add makes a template: it fills an image, then publishes file and record.
func (l *Library) add(ctx context.Context, names []string, src source) (t store.Template, err error) {
	if err := checkNames(names); err != nil {
		return store.Template{}, err
	}
	d, err := newDraft(l.images())
	if err != nil {
		return store.Template{}, fmt.Errorf("add template from %s: %w", src.description, err)
	}
	defer func() { err = errors.Join(err, d.discard()) }()
	t, file, err := l.build(ctx, d, src)
	if err != nil {
		return store.Template{}, fmt.Errorf("add template from %s: %w", src.description, full(err))
	}
	t.Names = slices.Clone(names)
	if t, err = l.enter(ctx, d, file, t); err != nil {
		return store.Template{}, fmt.Errorf("add template from %s: %w", src.description, err)
	}
	l.log.Info("template added", "id", t.ID, "names", strings.Join(names, ","), "source", src.description, "bytes", t.SizeBytes)
	return t, nil
}

// build fills the draft and returns the name its content gives it.
func (l *Library) build(ctx context.Context, d *draft, src source) (store.Template, string, error) {
	b := rootfs.New(d.Writer, maxImageFiles)
	want, err := src.fill(ctx, b)
	if err != nil {
		return store.Template{}, "", err
	}
	defaults, err := b.Complete(want.Defaults)
	if err != nil {
		return store.Template{}, "", err
	}
	file, err := d.finish(ctx, b.Root())
	if err != nil {
		return store.Template{}, "", err
	}
	l.warn(b, src)
	return store.Template{
		ID:        newID(),
		Source:    src.description,
		Env:       withPath(want.Env),
		User:      defaults.User,
		Workdir:   defaults.Workdir,
		Limits:    l.defaults,
		CreatedAt: time.Now(),
	}, file, nil
}

// warn tells what a template lacks of its source.
func (l *Library) warn(b *rootfs.Builder, src source) {
	if d := b.Dropped(); d != (rootfs.Dropped{}) {
		l.log.Warn("a template cannot hold everything its source has", "source", src.description,
			"devices", d.Devices, "sockets", d.Sockets, "filesWithAttributes", d.Xattrs)
	}
	if !b.Exists("bin/sh") {
		l.log.Warn("a template has no /bin/sh: commands will not run in it", "source", src.description)
	}
}

// enter gives the image its place and the template its record.
func (l *Library) enter(ctx context.Context, d *draft, file string, t store.Template) (store.Template, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all, err := l.store.Templates(ctx)
	if err != nil {
		return store.Template{}, err
	}
	for _, other := range all {
		if slices.Contains(t.Names, other.ID) {
			return store.Template{}, fmt.Errorf("%w: %q is the id of another template", ErrName, other.ID)
		}
	}
	image, size, err := d.publish(file)
	if err != nil {
		return store.Template{}, err
	}
	t.Root, t.SizeBytes = sandbox.Root{Image: image}, size
	if err := l.store.PutTemplate(ctx, t); err != nil {
		return store.Template{}, errors.Join(err, l.deleteUnused(context.WithoutCancel(ctx), image))
	}
	return t, nil
}

// withPath adds a search path where env has none.
func withPath(env []string) []string {
	for _, e := range env {
		if strings.HasPrefix(e, "PATH=") {
			return env
		}
	}
	return append([]string{defaultPath}, env...)
}
