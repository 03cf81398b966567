package storetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// fullSandbox sets every field, so that one which an implementation drops is
// noticed; sandboxRoundTrip checks that none was left zero here.
func fullSandbox(id, team string) store.Sandbox {
	off := false
	return store.Sandbox{
		ID: id, Team: team, TemplateID: "t1", Alias: "base",
		State:     sandbox.Running,
		StartedAt: time.Date(2026, 11, 21, 10, 0, 0, 123456789, time.UTC),
		EndAt:     time.Date(2026, 11, 21, 10, 5, 0, 0, time.UTC),
		Secure:    true,
		Limits:    sandbox.Limits{CPUs: 2, MemoryMB: 512, DiskMB: 1024, Processes: 100},
		Metadata:  map[string]string{"owner": "Grüße \x00 ✓", "": "empty key"},
		Network: policy.Document{
			AllowOut: []string{"1.1.1.1", "2001:db8::/32"},
			DenyOut:  []string{"0.0.0.0/0"},
			Rules: policy.Rules{Ordered: []policy.OrderedRule{{
				Name: "r", Match: policy.Match{Host: "a.example.com", Methods: []string{"GET"}}, Allow: true,
				Inject: []policy.Header{{Name: "Authorization"}},
			}}},
			EgressProxy: &policy.EgressProxy{Address: "proxy.example.com:1080", Username: "u"},
			StrictDNS:   true,
			Default:     policy.Allow,
		},
		NetworkSecrets: []byte{0, 1, 0xff},
		InternetAccess: &off,
		Grants: []sandbox.Grant{{
			ID: "g1", AllowOut: []string{"8.8.8.8", "*.example.com"},
			CreatedAt: time.Date(2026, 11, 21, 10, 1, 0, 0, time.UTC),
			ExpiresAt: time.Date(2026, 11, 21, 10, 11, 0, 0, time.UTC),
		}},
		Generation: 7,
		Ingress: sandbox.Ingress{
			Public: true, AllowPublicTraffic: &off, Ports: map[uint16]bool{80: false, 65535: true},
			MaskHost: "localhost:${PORT}", HTTPSPorts: []uint16{443},
		},
		TrafficNonce: "n1",
		Runtime:      "gvisor", Box: "b1", Slot: 3,
	}
}

func sandboxRoundTrip(t *testing.T, s *subject) {
	want := fullSandbox("i1", "a")
	v := reflect.ValueOf(want)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Fatalf("fullSandbox leaves %s zero: the suite would not notice its loss", v.Type().Field(i).Name)
		}
	}
	must(t, s.CreateSandbox(t.Context(), want))
	got, err := s.Sandbox(t.Context(), "i1")
	must(t, err)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if _, err := s.Sandbox(t.Context(), "i2"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unknown id: got %v, want ErrNotFound", err)
	}
	if _, err := s.Sandbox(t.Context(), ""); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("empty id: got %v, want ErrNotFound", err)
	}
}

func sandboxUnique(t *testing.T, s *subject) {
	first := fullSandbox("i1", "a")
	must(t, s.CreateSandbox(t.Context(), first))
	second := fullSandbox("i1", "b")
	if err := s.CreateSandbox(t.Context(), second); !errors.Is(err, store.ErrExists) {
		t.Fatalf("got %v, want ErrExists", err)
	}
	got, err := s.Sandbox(t.Context(), "i1")
	must(t, err)
	if got.Team != "a" {
		t.Errorf("the refused record replaced the first one: team %q", got.Team)
	}
	others, err := s.Sandboxes(t.Context(), "b")
	must(t, err)
	if len(others) != 0 {
		t.Errorf("the refused record is listed for its team: %v", others)
	}
	if err := s.CreateSandbox(t.Context(), store.Sandbox{Team: "a"}); err == nil {
		t.Error("a sandbox without id was stored")
	}
}

func sandboxUpdate(t *testing.T, s *subject) {
	must(t, s.CreateSandbox(t.Context(), fullSandbox("i1", "a")))
	returned, err := s.UpdateSandbox(t.Context(), "i1", func(r *store.Sandbox) error {
		r.State, r.InternetAccess, r.Metadata = sandbox.Stopping, nil, nil
		r.Generation++
		return nil
	})
	must(t, err)
	want := fullSandbox("i1", "a")
	want.State, want.InternetAccess, want.Metadata, want.Generation = sandbox.Stopping, nil, nil, 8
	stored, err := s.Sandbox(t.Context(), "i1")
	must(t, err)
	if !reflect.DeepEqual(stored, want) || !reflect.DeepEqual(returned, want) {
		t.Errorf("stored %+v\nreturned %+v\nwant %+v", stored, returned, want)
	}
}

func sandboxUpdateRefused(t *testing.T, s *subject) {
	want := fullSandbox("i1", "a")
	must(t, s.CreateSandbox(t.Context(), want))
	refusal := errors.New("no")
	for name, change := range map[string]func(*store.Sandbox) error{
		"error": func(r *store.Sandbox) error { r.Slot = 99; return refusal },
		"id":    func(r *store.Sandbox) error { r.ID = "i9"; return nil },
		"team":  func(r *store.Sandbox) error { r.Team = "b"; return nil },
	} {
		got, err := s.UpdateSandbox(t.Context(), "i1", change)
		if err == nil || (name == "error" && err != refusal) {
			t.Errorf("%s: got error %v", name, err)
		}
		if !reflect.DeepEqual(got, store.Sandbox{}) {
			t.Errorf("%s: a refused change returned a record", name)
		}
	}
	stored, err := s.Sandbox(t.Context(), "i1")
	must(t, err)
	if !reflect.DeepEqual(stored, want) {
		t.Errorf("a refused change was kept: %+v", stored)
	}
	called := false
	_, err = s.UpdateSandbox(t.Context(), "i2", func(*store.Sandbox) error { called = true; return nil })
	if !errors.Is(err, store.ErrNotFound) || called {
		t.Errorf("unknown id: got %v, change called: %t", err, called)
	}
}

func sandboxConcurrentUpdates(t *testing.T, s *subject) {
	must(t, s.CreateSandbox(t.Context(), store.Sandbox{ID: "i1", Team: "a"}))
	const writers, each = 4, 5
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for range each {
				_, err := s.UpdateSandbox(t.Context(), "i1", func(r *store.Sandbox) error { r.Generation++; return nil })
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	got, err := s.Sandbox(t.Context(), "i1")
	must(t, err)
	if got.Generation != writers*each {
		t.Errorf("generation %d, want %d: updates were lost", got.Generation, writers*each)
	}
}

func sandboxDelete(t *testing.T, s *subject) {
	must(t, s.CreateSandbox(t.Context(), fullSandbox("i1", "a")))
	must(t, s.CreateSandbox(t.Context(), fullSandbox("i2", "a")))
	must(t, s.DeleteSandbox(t.Context(), "i1"))
	if _, err := s.Sandbox(t.Context(), "i1"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("after delete: got %v, want ErrNotFound", err)
	}
	if err := s.DeleteSandbox(t.Context(), "i1"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("second delete: got %v, want ErrNotFound", err)
	}
	left, err := s.Sandboxes(t.Context(), "a")
	must(t, err)
	if len(left) != 1 || left[0].ID != "i2" {
		t.Errorf("left %v, want i2 only", left)
	}
	must(t, s.CreateSandbox(t.Context(), fullSandbox("i1", "b")))
}

func sandboxTeams(t *testing.T, s *subject) {
	for i, team := range []string{"a", "b", "a", "aa", ""} {
		must(t, s.CreateSandbox(t.Context(), fullSandbox(fmt.Sprintf("i%d", i), team)))
	}
	for team, want := range map[string][]string{
		"a": {"i0", "i2"}, "b": {"i1"}, "aa": {"i3"}, "c": nil,
		"": {"i0", "i1", "i2", "i3", "i4"},
	} {
		records, err := s.Sandboxes(t.Context(), team)
		must(t, err)
		var ids []string
		for _, r := range records {
			ids = append(ids, r.ID)
		}
		slices.Sort(ids)
		if !slices.Equal(ids, want) {
			t.Errorf("team %q: got %v, want %v", team, ids, want)
		}
	}
}

func sandboxCopy(t *testing.T, s *subject) {
	record := fullSandbox("i1", "a")
	must(t, s.CreateSandbox(t.Context(), record))
	record.Metadata["owner"] = "changed by the creator"
	got, err := s.Sandbox(t.Context(), "i1")
	must(t, err)
	got.Metadata["owner"] = "changed by a reader"
	got.Network.AllowOut[0] = "9.9.9.9"
	*got.InternetAccess = true
	again, err := s.Sandbox(t.Context(), "i1")
	must(t, err)
	if want := fullSandbox("i1", "a"); !reflect.DeepEqual(again, want) {
		t.Errorf("a change of a returned record reached the store: %+v", again)
	}
}

func survival(t *testing.T, s *subject) {
	must(t, s.CreateSandbox(t.Context(), fullSandbox("i1", "a")))
	must(t, s.CreateKey(t.Context(), fullKey("k1")))
	must(t, s.PutTemplate(t.Context(), fullTemplate("t1", "base")))
	s.reopen(t)
	box, err := s.Sandbox(t.Context(), "i1")
	must(t, err)
	key, err := s.KeyByHash(t.Context(), fullKey("k1").Hash)
	must(t, err)
	template, err := s.Template(t.Context(), "base")
	must(t, err)
	if !reflect.DeepEqual(box, fullSandbox("i1", "a")) || key != fullKey("k1") || !reflect.DeepEqual(template, fullTemplate("t1", "base")) {
		t.Errorf("after a restart: %+v, %+v, %+v", box, key, template)
	}
	byTeam, err := s.Sandboxes(t.Context(), "a")
	must(t, err)
	if len(byTeam) != 1 {
		t.Errorf("after a restart team a has %d sandboxes, want 1", len(byTeam))
	}
}

func cancelled(t *testing.T, s *subject) {
	must(t, s.CreateSandbox(t.Context(), fullSandbox("i1", "a")))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, read := s.Sandbox(ctx, "i1")
	_, list := s.Sandboxes(ctx, "")
	for call, err := range map[string]error{
		"Sandbox": read, "Sandboxes": list,
		"CreateSandbox": s.CreateSandbox(ctx, fullSandbox("i2", "a")),
		"DeleteSandbox": s.DeleteSandbox(ctx, "i1"),
		"CreateKey":     s.CreateKey(ctx, fullKey("k1")),
		"PutTemplate":   s.PutTemplate(ctx, fullTemplate("t1")),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v, want context.Canceled", call, err)
		}
	}
	all, err := s.Sandboxes(t.Context(), "")
	must(t, err)
	if len(all) != 1 || all[0].ID != "i1" {
		t.Errorf("a cancelled call changed the store: %v", all)
	}
}
