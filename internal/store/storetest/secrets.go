package storetest

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/store"
)

func fullSecret(team, name string) store.Secret {
	return store.Secret{
		Team: team, Name: name, Sealed: []byte{0, 1, 0xff, '"'},
		CreatedAt: time.Date(2026, 11, 21, 10, 0, 0, 1, time.UTC),
		UpdatedAt: time.Date(2026, 11, 22, 10, 0, 0, 1, time.UTC),
	}
}

func secretRoundTrip(t *testing.T, s *subject) {
	want := fullSecret("a", "key")
	must(t, s.PutSecret(t.Context(), want))
	want.Sealed = []byte("another")
	must(t, s.PutSecret(t.Context(), want)) // replaces
	s.reopen(t)
	got, err := s.Secret(t.Context(), "a", "key")
	must(t, err)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, wrong := range []store.Secret{{Team: "a", Name: "x"}, {Team: "a", Sealed: want.Sealed}, {Name: "x", Sealed: want.Sealed}} {
		if err := s.PutSecret(t.Context(), wrong); err == nil {
			t.Errorf("%+v was stored", wrong)
		}
	}
}

func secretTeams(t *testing.T, s *subject) {
	for _, id := range [][2]string{{"a", "one"}, {"a", "two"}, {"ab", "one"}, {"b", "one"}} {
		must(t, s.PutSecret(t.Context(), fullSecret(id[0], id[1])))
	}
	for team, want := range map[string]int{"a": 2, "ab": 1, "b": 1, "c": 0, "": 4} {
		got, err := s.Secrets(t.Context(), team)
		must(t, err)
		if len(got) != want {
			t.Errorf("team %q has %d secrets, want %d", team, len(got), want)
		}
	}
	if _, err := s.Secret(t.Context(), "b", "two"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("another team's secret: %v, want ErrNotFound", err)
	}
}

func secretDelete(t *testing.T, s *subject) {
	must(t, s.PutSecret(t.Context(), fullSecret("a", "key")))
	if err := s.DeleteSecret(t.Context(), "b", "key"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("delete of another team's: %v, want ErrNotFound", err)
	}
	must(t, s.DeleteSecret(t.Context(), "a", "key"))
	if _, err := s.Secret(t.Context(), "a", "key"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("after delete: %v, want ErrNotFound", err)
	}
	if err := s.DeleteSecret(t.Context(), "a", "key"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("second delete: %v, want ErrNotFound", err)
	}
}
