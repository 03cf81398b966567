package control

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

func listTemplates(c *call) error {
	records, err := c.Templates.List(c.r.Context())
	if err != nil {
		return err
	}
	slices.SortFunc(records, func(a, b store.Template) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.ID, b.ID))
	})
	templates := make([]api.Template, 0, len(records))
	for _, t := range records {
		templates = append(templates, templateView(t))
	}
	return c.reply(http.StatusOK, templates)
}

// addTemplate may take minutes: it reads a whole file system, perhaps over the
// network. It ends when the operator stops waiting.
func addTemplate(c *call) error {
	var body api.NewTemplate
	if err := c.body(&body, false); err != nil {
		return err
	}
	if len(body.Names) == 0 {
		return badRequest("names is required: a template needs a name to be started by")
	}
	add, err := c.templateSource(body)
	if err != nil {
		return err
	}
	record, err := add(c.r.Context())
	if err != nil {
		return templateFault(err)
	}
	return c.reply(http.StatusCreated, templateView(record))
}

// templateSource picks what the template is made from.
func (c *call) templateSource(body api.NewTemplate) (func(context.Context) (store.Template, error), error) {
	sources := 0
	for _, s := range []string{body.Dir, body.Tar, body.Image} {
		if s != "" {
			sources++
		}
	}
	if sources != 1 {
		return nil, badRequest("exactly one of dir, tar and image is needed, got %d", sources)
	}
	if path := body.Dir + body.Tar; path != "" && !filepath.IsAbs(path) {
		return nil, badRequest("%q is not an absolute path on the server's machine", clip(path))
	}
	return func(ctx context.Context) (store.Template, error) {
		switch {
		case body.Dir != "":
			return c.Templates.AddDir(ctx, body.Dir, body.Names)
		case body.Tar != "":
			return c.Templates.AddTar(ctx, body.Tar, body.Names)
		}
		return c.Templates.AddImage(ctx, body.Image, body.Names, body.Insecure)
	}, nil
}

func removeTemplate(c *call) error {
	ref := c.r.PathValue("template")
	err := c.Templates.Remove(c.r.Context(), ref)
	if errors.Is(err, sandbox.ErrTemplateNotFound) || errors.Is(err, store.ErrNotFound) {
		return templateNotFound(ref)
	}
	if err != nil {
		return templateFault(err)
	}
	return c.done()
}

// templateFault shows the cause: the operator owns the machine it speaks of.
func templateFault(err error) error {
	if errors.Is(err, store.ErrFull) || errors.Is(err, context.Canceled) {
		return err
	}
	return &fault{status: http.StatusUnprocessableEntity, message: err.Error()}
}

func templateView(t store.Template) api.Template {
	return api.Template{
		ID:         t.ID,
		Names:      t.Names,
		Source:     t.Source,
		SizeBytes:  t.SizeBytes,
		CPUCount:   t.Limits.CPUs,
		MemoryMB:   t.Limits.MemoryMB,
		DiskSizeMB: t.Limits.DiskMB,
		CreatedAt:  shown(t.CreatedAt),
	}
}
