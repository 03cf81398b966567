package node

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/secret"
)

// A sandbox that nobody made public has a token, from its create to its end and
// over restarts of the server; at rest there is nothing to derive it from but
// with the server's key.
func TestTrafficToken(t *testing.T) {
	r := newRig(t)
	first := r.open()
	public := spec("a")
	public.Ingress = sandbox.Ingress{Public: true, MaskHost: "localhost:${PORT}"}
	open, err := first.Create(t.Context(), public)
	if err != nil {
		t.Fatal(err)
	}
	if token := first.TrafficToken(open); !token.Empty() || open.TrafficNonce != "" {
		t.Errorf("a public sandbox has the token %q", token.Reveal())
	}
	record := create(t, first, "a")
	other := create(t, first, "b")
	token := first.TrafficToken(record).Reveal()
	if len(token) != 64 || token == first.GuestToken(record).Reveal() || token == first.TrafficToken(other).Reveal() {
		t.Errorf("token %q is not one of its own", token)
	}
	rotated, err := first.RotateTrafficToken(t.Context(), record.ID)
	if err != nil || rotated.Empty() || rotated.Reveal() == token {
		t.Fatalf("rotated to %q, %v", rotated.Reveal(), err)
	}
	before, after := reach(t, first, other.ID), reach(t, first, record.ID)
	if !after.Traffic.Equal(rotated.Reveal()) || after.Link.Empty() || before.Link.Equal(after.Link.Reveal()) || after.Link.Equal(rotated.Reveal()) {
		t.Error("visitors are not asked for the new token, or links are not signed by a key of their own")
	}
	if _, err := first.RotateTrafficToken(t.Context(), other.ID); err != nil || reach(t, first, other.ID).Link.Equal(before.Link.Reveal()) {
		t.Errorf("links outlive their token, or %v", err)
	}
	if _, err := first.RotateTrafficToken(t.Context(), open.ID); !errors.Is(err, sandbox.ErrPublic) {
		t.Errorf("rotated the token of a public sandbox: %v", err)
	}
	if _, err := first.RotateTrafficToken(t.Context(), "inone"); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("rotated the token of no sandbox: %v", err)
	}
	first.Close()

	second := r.open()
	defer second.Close()
	reached, ok := second.Reach(record.ID)
	if !ok || !reached.Keys.Traffic.Equal(rotated.Reveal()) || !reached.Keys.Guest.Equal(second.GuestToken(record).Reveal()) {
		t.Error("the restarted server has other tokens")
	}
	reached, ok = second.Reach(open.ID)
	if !ok || !reached.Record.Ingress.Public || reached.Record.Ingress.MaskHost != "localhost:${PORT}" {
		t.Errorf("adopted as %+v", reached.Record.Ingress)
	}
	raw, err := os.ReadFile(r.path)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{token, rotated.Reveal()} {
		if strings.Contains(string(raw), token) {
			t.Error("a token is kept at rest")
		}
	}
	if err := second.Kill(t.Context(), record.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := second.RotateTrafficToken(t.Context(), record.ID); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("rotated the token of a killed sandbox: %v", err)
	}
}

func reach(t *testing.T, n *Node, id string) Keys {
	t.Helper()
	r, ok := n.Reach(id)
	if !ok {
		t.Fatalf("sandbox %s is not there", id)
	}
	return r.Keys
}

// One private port is enough for a token.
func TestPrivatePortHasAToken(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	for want, ingress := range map[bool]sandbox.Ingress{
		true:  {Public: true, Ports: map[uint16]bool{80: true, 8080: false}},
		false: {Public: true, Ports: map[uint16]bool{80: true}},
	} {
		asked := spec("a")
		asked.Ingress = ingress
		record, err := n.Create(t.Context(), asked)
		if err != nil {
			t.Fatal(err)
		}
		if got := !n.TrafficToken(record).Empty(); got != want {
			t.Errorf("%+v: has a token: %t", ingress, got)
		}
	}
}

// A rotation that is not recorded did not happen.
func TestRotationFailsWhole(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	record := create(t, n, "a")
	r.setBroken("update", true)
	if _, err := n.RotateTrafficToken(t.Context(), record.ID); !errors.Is(err, errBroken) {
		t.Fatalf("rotated: %v", err)
	}
	reached, ok := n.Reach(record.ID)
	if !ok || !reached.Keys.Traffic.Equal(n.TrafficToken(record).Reveal()) {
		t.Error("the old token does not hold")
	}
}

// A record without a nonce, as damage or an older version may leave one, lets
// nobody in.
func TestNoNonceNoToken(t *testing.T) {
	r := newRig(t)
	n := r.open()
	defer n.Close()
	record := create(t, n, "a")
	record.TrafficNonce = ""
	if token := n.TrafficToken(record); !token.Empty() || token.Equal("") {
		t.Errorf("there is a token: %q", token.Reveal())
	}
}

func TestOpenNeedsAMasterKey(t *testing.T) {
	r := newRig(t)
	_, err := Open(t.Context(), Config{
		Store: r.store, Network: r, Tenants: new(egress.Registry), Flows: &r.flows, Audit: r.audit(), Runtime: rigRuntime{r}, Templates: r, Master: secret.Master{}, Logger: slog.New(slog.DiscardHandler),
		Compile:      func(d policy.Document) (*policy.Policy, error) { return policy.Parse(d, policy.Options{}) },
		MaxSandboxes: 1, TeamLimit: 1,
	})
	if err == nil || !strings.Contains(err.Error(), "master key") {
		t.Errorf("opened without one: %v", err)
	}
}
