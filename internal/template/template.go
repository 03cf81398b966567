// Package template keeps what sandboxes are started from: the base template,
// made of this machine's own programs, and images made from directories, tar
// archives and OCI images. Each image is one EROFS file named by its content.
package template

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
	"github.com/moat-sandbox/moat/internal/template/account"
	"github.com/moat-sandbox/moat/internal/template/base"
)

// Names of the base template. They cannot be given to others.
const (
	Base        = "base"
	Interpreter = "code-interpreter-v1"
)

var (
	// ErrName is returned for names that a template cannot have.
	ErrName = errors.New("template name is not valid")
	// ErrBase is returned when the base template would be removed.
	ErrBase = errors.New("the base template cannot be removed")
)

// Records is where templates are remembered; store.Store has it all.
type Records interface {
	PutTemplate(ctx context.Context, t store.Template) error
	Template(ctx context.Context, ref string) (store.Template, error)
	DeleteTemplate(ctx context.Context, id string) error
	Templates(ctx context.Context) ([]store.Template, error)
}

// Config is what a Library needs.
type Config struct {
	// Dir is a directory of its own below the data directory. It is created.
	Dir    string
	Store  Records
	Logger *slog.Logger
	// Defaults are the limits of sandboxes whose template says nothing else.
	Defaults sandbox.Limits
	// SetUp does ahead to the base template what all sandboxes have in common;
	// nil does nothing. The guest daemon does what it finds undone.
	SetUp func(base.Files) error
}

// Library keeps the templates of this machine. It is safe for concurrent use.
type Library struct {
	dir      string
	store    Records
	log      *slog.Logger
	defaults sandbox.Limits
	base     *base.Base

	// mu is held while a file and its record come or go together, so that no
	// record ever names a file that somebody is removing.
	mu sync.Mutex
}

// Open opens the library and removes what an interrupted run left: temporary
// files and images that no record names.
func Open(cfg Config) (*Library, error) {
	if cfg.Store == nil || cfg.Logger == nil {
		return nil, errors.New("open templates: store and logger are required")
	}
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("open templates: directory %q is not absolute", cfg.Dir)
	}
	made, err := base.New(base.Config{Dir: filepath.Join(cfg.Dir, "base"), SetUp: cfg.SetUp})
	if err != nil {
		return nil, fmt.Errorf("open templates: %w", err)
	}
	l := &Library{dir: cfg.Dir, store: cfg.Store, log: cfg.Logger, defaults: cfg.Defaults, base: made}
	// Only the server may come here: images hold setuid programs.
	if err := os.MkdirAll(l.images(), 0o700); err != nil {
		return nil, fmt.Errorf("open templates: %w", err)
	}
	if err := l.removeOrphans(context.Background()); err != nil {
		return nil, fmt.Errorf("open templates: remove leftovers: %w", err)
	}
	return l, nil
}

func (l *Library) images() string { return filepath.Join(l.dir, "images") }

// removeOrphans deletes every file among the images that no record names.
func (l *Library) removeOrphans(ctx context.Context) error {
	records, err := l.store.Templates(ctx)
	if err != nil {
		return err
	}
	used := make(map[string]bool)
	for _, t := range records {
		used[filepath.Base(t.Root.Image)] = true
	}
	files, err := os.ReadDir(l.images())
	if err != nil {
		return err
	}
	for _, f := range files {
		if used[f.Name()] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(l.images(), f.Name())); err != nil {
			return err
		}
		l.log.Info("removed a leftover of an interrupted template", "file", f.Name())
	}
	return nil
}

// EnsureBase makes the base template from this machine's /usr, or brings it up
// to date. It must return before any box is started from it and is called once
// per start of the server.
func (l *Library) EnsureBase(ctx context.Context) error {
	made, err := l.base.Ensure(ctx)
	if err != nil {
		return fmt.Errorf("make the base template: %w", full(err))
	}
	for _, h := range made.Hidden {
		l.log.Debug("hidden from sandboxes", "path", "/usr/"+h.Path, "reason", h.Reason)
	}
	l.log.Info("base template is ready", "hidden", len(made.Hidden), "updated", made.Files)
	if !made.Trust {
		l.log.Warn("this machine has no certificate bundle: programs in the base template will trust no server")
	}
	t := store.Template{
		ID:        Base,
		Names:     []string{Base, Interpreter},
		Source:    "this machine's /usr",
		Root:      sandbox.Root{Dir: l.base.Root()},
		Env:       base.Env(),
		User:      account.Default,
		Workdir:   account.DefaultHome,
		Limits:    l.defaults,
		CreatedAt: time.Now(),
	}
	old, err := l.store.Template(ctx, Base)
	switch {
	case err == nil:
		t.CreatedAt = old.CreatedAt
	case !errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("make the base template: %w", err)
	}
	if err := l.store.PutTemplate(ctx, t); err != nil {
		return fmt.Errorf("record the base template: %w", err)
	}
	return nil
}

// Unmount takes the base template's mounts away. Boxes that run keep them.
func (l *Library) Unmount() error {
	if err := l.base.Unmount(); err != nil {
		return fmt.Errorf("unmount the base template: %w", err)
	}
	return nil
}

// Resolve finds the template that ref, an id or a name, means, ready to be
// started. It returns sandbox.ErrTemplateNotFound where there is none and
// sandbox.ErrTemplateBroken where its files are gone.
func (l *Library) Resolve(ctx context.Context, ref string) (store.Template, error) {
	t, err := l.record(ctx, ref)
	if err != nil {
		return store.Template{}, err
	}
	if err := l.check(t); err != nil {
		return store.Template{}, fmt.Errorf("%w: %s: %w", sandbox.ErrTemplateBroken, ref, err)
	}
	return t, nil
}

func (l *Library) record(ctx context.Context, ref string) (store.Template, error) {
	if !validName(ref) {
		return store.Template{}, fmt.Errorf("%w: %.80q", sandbox.ErrTemplateNotFound, ref)
	}
	t, err := l.store.Template(ctx, ref)
	if errors.Is(err, store.ErrNotFound) {
		return store.Template{}, fmt.Errorf("%w: %s", sandbox.ErrTemplateNotFound, ref)
	}
	if err != nil {
		return store.Template{}, fmt.Errorf("look up template %s: %w", ref, err)
	}
	return l.located(t), nil
}

// located says where t's files are now. Records name them as they were when it
// was made; the data directory may have moved since.
func (l *Library) located(t store.Template) store.Template {
	if t.Root.Image != "" {
		t.Root.Image = filepath.Join(l.images(), filepath.Base(t.Root.Image))
	} else {
		t.Root.Dir = l.base.Root()
	}
	return t
}

// check reports why t cannot be started.
func (l *Library) check(t store.Template) error {
	if t.Root.Image == "" {
		return l.base.Complete()
	}
	info, err := os.Lstat(t.Root.Image)
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Size() != t.SizeBytes:
		return fmt.Errorf("image has %d bytes instead of %d", info.Size(), t.SizeBytes)
	}
	return nil
}

// List returns all templates, in no particular order.
func (l *Library) List(ctx context.Context) ([]store.Template, error) {
	all, err := l.store.Templates(ctx)
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	for i := range all {
		all[i] = l.located(all[i])
	}
	return all, nil
}

// Remove forgets the template that ref means and deletes its image unless
// another template has the same. Sandboxes that run from it are not disturbed:
// they have it open.
func (l *Library) Remove(ctx context.Context, ref string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, err := l.record(ctx, ref)
	if err != nil {
		return err
	}
	if t.ID == Base {
		return ErrBase
	}
	if err := l.store.DeleteTemplate(ctx, t.ID); err != nil {
		return fmt.Errorf("remove template %s: %w", ref, err)
	}
	l.log.Info("template removed", "id", t.ID, "names", strings.Join(t.Names, ","))
	return l.deleteUnused(ctx, t.Root.Image)
}

// deleteUnused deletes an image that no record names. l.mu must be held.
func (l *Library) deleteUnused(ctx context.Context, image string) error {
	rest, err := l.List(ctx)
	if err != nil {
		return err
	}
	for _, t := range rest {
		if t.Root.Image == image {
			return nil
		}
	}
	if err := os.Remove(image); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete template image: %w", err)
	}
	return nil
}
