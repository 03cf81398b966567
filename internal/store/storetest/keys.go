package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/store"
)

func fullKey(id string) store.Key {
	return store.Key{
		ID: id, Team: "team of " + id, Name: "ci", Hash: "hash of " + id, Prefix: "e2b_0123",
		CreatedAt: time.Date(2026, 11, 21, 10, 0, 0, 1, time.UTC),
	}
}

func keyRoundTrip(t *testing.T, s *subject) {
	must(t, s.CreateKey(t.Context(), fullKey("k1")))
	must(t, s.CreateKey(t.Context(), fullKey("k2")))
	got, err := s.KeyByHash(t.Context(), fullKey("k1").Hash)
	must(t, err)
	if got != fullKey("k1") {
		t.Errorf("got %+v, want %+v", got, fullKey("k1"))
	}
	for _, hash := range []string{"", "k1", "hash of k", "hash of k3"} {
		if k, err := s.KeyByHash(t.Context(), hash); !errors.Is(err, store.ErrNotFound) || k != (store.Key{}) {
			t.Errorf("hash %q: got %+v, %v, want ErrNotFound", hash, k, err)
		}
	}
	all, err := s.Keys(t.Context())
	must(t, err)
	if len(all) != 2 || all[0] == all[1] {
		t.Errorf("got %v, want both keys", all)
	}
}

func keyUnique(t *testing.T, s *subject) {
	must(t, s.CreateKey(t.Context(), fullKey("k1")))
	sameID, sameHash := fullKey("k1"), fullKey("k2")
	sameID.Hash, sameHash.Hash = "another", fullKey("k1").Hash
	for name, k := range map[string]store.Key{"id": sameID, "hash": sameHash} {
		if err := s.CreateKey(t.Context(), k); !errors.Is(err, store.ErrExists) {
			t.Errorf("same %s: got %v, want ErrExists", name, err)
		}
	}
	if _, err := s.KeyByHash(t.Context(), "another"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the refused key works: %v", err)
	}
	if err := s.CreateKey(t.Context(), store.Key{ID: "k3"}); err == nil {
		t.Error("a key without hash was stored")
	}
}

func keyDelete(t *testing.T, s *subject) {
	must(t, s.CreateKey(t.Context(), fullKey("k1")))
	must(t, s.DeleteKey(t.Context(), "k1"))
	if _, err := s.KeyByHash(t.Context(), fullKey("k1").Hash); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a deleted key works: %v", err)
	}
	if err := s.DeleteKey(t.Context(), "k1"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("second delete: got %v, want ErrNotFound", err)
	}
	all, err := s.Keys(t.Context())
	must(t, err)
	if len(all) != 0 {
		t.Errorf("left: %v", all)
	}
}
