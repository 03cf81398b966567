package storetest

import (
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

func fullTemplate(id string, names ...string) store.Template {
	return store.Template{
		ID: id, Names: names, Source: "a tarball",
		Root:      sandbox.Root{Image: "/images/" + id, Dir: "/dirs/" + id},
		SizeBytes: 1 << 40,
		Env:       []string{"A=b"}, User: "user", Workdir: "/home/user",
		Limits:    sandbox.Limits{CPUs: 1, MemoryMB: 2, DiskMB: 3, Processes: 4},
		CreatedAt: time.Date(2026, 11, 21, 10, 0, 0, 1, time.UTC),
	}
}

func wantTemplate(t *testing.T, s *subject, ref string, want store.Template) {
	t.Helper()
	got, err := s.Template(t.Context(), ref)
	must(t, err)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q: got %+v\nwant %+v", ref, got, want)
	}
}

func wantNoTemplate(t *testing.T, s *subject, refs ...string) {
	t.Helper()
	for _, ref := range refs {
		if got, err := s.Template(t.Context(), ref); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%q: got %+v, %v, want ErrNotFound", ref, got, err)
		}
	}
}

func templateRoundTrip(t *testing.T, s *subject) {
	want := fullTemplate("t1", "base", "code-interpreter-v1")
	must(t, s.PutTemplate(t.Context(), want))
	must(t, s.PutTemplate(t.Context(), fullTemplate("t2")))
	for _, ref := range []string{"t1", "base", "code-interpreter-v1"} {
		wantTemplate(t, s, ref, want)
	}
	wantNoTemplate(t, s, "", "bas", "basel", "t3")
	all, err := s.Templates(t.Context())
	must(t, err)
	if len(all) != 2 || all[0].ID == all[1].ID {
		t.Errorf("got %v, want both templates", all)
	}
	for _, bad := range []store.Template{fullTemplate("", "x"), fullTemplate("t4", "")} {
		if err := s.PutTemplate(t.Context(), bad); err == nil {
			t.Errorf("template %+v was stored", bad)
		}
	}
}

func templateReplaced(t *testing.T, s *subject) {
	must(t, s.PutTemplate(t.Context(), fullTemplate("t1", "old", "both")))
	next := fullTemplate("t1", "both", "new")
	next.Source = "an image"
	must(t, s.PutTemplate(t.Context(), next))
	wantNoTemplate(t, s, "old")
	for _, ref := range []string{"t1", "both", "new"} {
		wantTemplate(t, s, ref, next)
	}
}

func templateNameMoves(t *testing.T, s *subject) {
	must(t, s.PutTemplate(t.Context(), fullTemplate("t1", "base", "tools")))
	must(t, s.PutTemplate(t.Context(), fullTemplate("t2", "base")))
	wantTemplate(t, s, "base", fullTemplate("t2", "base"))
	wantTemplate(t, s, "t1", fullTemplate("t1", "tools"))
	must(t, s.DeleteTemplate(t.Context(), "t1"))
	wantTemplate(t, s, "base", fullTemplate("t2", "base"))
}

func templateDelete(t *testing.T, s *subject) {
	must(t, s.PutTemplate(t.Context(), fullTemplate("t1", "base")))
	must(t, s.PutTemplate(t.Context(), fullTemplate("t2", "tools")))
	if err := s.DeleteTemplate(t.Context(), "base"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("delete by name: got %v, want ErrNotFound: only ids delete", err)
	}
	must(t, s.DeleteTemplate(t.Context(), "t1"))
	wantNoTemplate(t, s, "t1", "base")
	if err := s.DeleteTemplate(t.Context(), "t1"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("second delete: got %v, want ErrNotFound", err)
	}
	all, err := s.Templates(t.Context())
	must(t, err)
	if !slices.EqualFunc(all, []string{"t2"}, func(x store.Template, id string) bool { return x.ID == id }) {
		t.Errorf("left: %v", all)
	}
}
