package control

import (
	"context"
	"slices"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// templates stands in for the template library.
type templates struct {
	added   []string
	removed []string
	fails   error
}

var baseTemplate = store.Template{
	ID: "t1", Names: []string{"base", "code-interpreter-v1"}, Source: "the host's own files",
	Limits:    sandbox.Limits{CPUs: 2, MemoryMB: 512, DiskMB: 1024},
	CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
}

func (l *templates) Resolve(_ context.Context, ref string) (store.Template, error) {
	if ref == baseTemplate.ID || slices.Contains(baseTemplate.Names, ref) {
		return baseTemplate, nil
	}
	return store.Template{}, sandbox.ErrTemplateNotFound
}

func (l *templates) add(what string, names []string) (store.Template, error) {
	if l.fails != nil {
		return store.Template{}, l.fails
	}
	l.added = append(l.added, what)
	return store.Template{ID: "t2", Names: names, Source: what}, nil
}

func (l *templates) AddDir(_ context.Context, path string, names []string) (store.Template, error) {
	return l.add("dir "+path, names)
}

func (l *templates) AddTar(_ context.Context, path string, names []string) (store.Template, error) {
	return l.add("tar "+path, names)
}

func (l *templates) AddImage(ctx context.Context, ref string, names []string, insecure bool) (store.Template, error) {
	if _, bounded := ctx.Deadline(); bounded {
		return store.Template{}, context.DeadlineExceeded
	}
	if insecure {
		ref += " insecure"
	}
	return l.add("image "+ref, names)
}

func (l *templates) Remove(_ context.Context, ref string) error {
	if _, err := l.Resolve(context.Background(), ref); err != nil {
		return err
	}
	l.removed = append(l.removed, ref)
	return l.fails
}

func (l *templates) List(context.Context) ([]store.Template, error) {
	return []store.Template{baseTemplate}, nil
}
