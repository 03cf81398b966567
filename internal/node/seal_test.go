package node

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
)

// injecting is a document with two values that nobody may read.
func injecting(key, password string) policy.Document {
	return policy.Document{
		Default: policy.Allow,
		Rules: policy.Rules{Hosts: []policy.HostRule{{
			Host: "api.example.com", Headers: []policy.Header{{Name: "Authorization", Value: secret.New(key)}},
		}}},
		EgressProxy: &policy.EgressProxy{Address: "proxy.example.com:1080", Username: "u", Password: secret.New(password)},
	}
}

// injects is what a policy puts into requests, and the proxy's password.
func injects(t *testing.T, p *policy.Policy) (key, password string) {
	t.Helper()
	name, err := policy.ParseName("api.example.com")
	if err != nil {
		t.Fatal(err)
	}
	a := p.Request(policy.Request{Scheme: "https", Method: "GET", Name: name, SNI: name, Port: 443, Path: "/"})
	if len(a.Inject) != 1 {
		t.Fatalf("the policy injects %d headers", len(a.Inject))
	}
	value, err := a.Inject[0].Value.Resolve("a", nil)
	if err != nil {
		t.Fatal(err)
	}
	upstream, _ := p.Upstream()
	return value.Reveal(), upstream.Password.Reveal()
}

// What a network document keeps secret is in force, and nowhere to be read:
// not in the answers, not on the disk. It survives changes of other things,
// failed updates and a restart.
func TestNetworkSecretsAreSealed(t *testing.T) {
	r := newRig(t)
	n := r.open()
	want := func(n *Node, record store.Sandbox, key, password string) {
		t.Helper()
		for _, p := range []*policy.Policy{r.tenant(record).Policy, r.policy(record.Slot)} {
			if gotKey, gotPassword := injects(t, p); gotKey != key || gotPassword != password {
				t.Errorf("in force: %q and %q, want %q and %q", gotKey, gotPassword, key, password)
			}
		}
		stored, err := r.store.Sandbox(t.Context(), record.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range []policy.Document{stored.Network, record.Network} {
			if header := d.Rules.Hosts[0].Headers[0]; header.Name != "Authorization" || header.Value.Known() || d.EgressProxy.Password.Known() {
				t.Errorf("the record shows %+v, %+v", d.Rules, d.EgressProxy)
			}
		}
	}
	what := spec("a")
	what.Network = injecting("Bearer sk-first", "pw-first")
	record, err := n.Create(t.Context(), what)
	if err != nil {
		t.Fatal(err)
	}
	want(n, record, "Bearer sk-first", "pw-first")

	// A change of something else, then a failed update.
	if _, err := n.SetEnd(t.Context(), record.ID, time.Now().Add(time.Hour), true); err != nil {
		t.Fatal(err)
	}
	r.setBroken("update", true)
	if _, err := n.SetNetwork(t.Context(), record.ID, sandbox.NetworkChange{Document: injecting("Bearer sk-never", "pw-never")}); err == nil {
		t.Fatal("update succeeded")
	}
	r.setBroken("update", false)
	want(n, record, "Bearer sk-first", "pw-first")

	if _, err := n.SetNetwork(t.Context(), record.ID, sandbox.NetworkChange{Document: injecting("Bearer sk-second", "pw-second")}); err != nil {
		t.Fatal(err)
	}
	want(n, record, "Bearer sk-second", "pw-second")
	// Rules that nobody speaks of stay, with what they inject.
	kept := policy.Document{Rules: record.Network.Rules, EgressProxy: injecting("", "pw-third").EgressProxy}
	if _, err := n.SetNetwork(t.Context(), record.ID, sandbox.NetworkChange{Document: kept, KeepRules: true}); err != nil {
		t.Fatal(err)
	}
	want(n, record, "Bearer sk-second", "pw-third")

	n.Close()
	second := r.open()
	defer second.Close()
	want(second, record, "Bearer sk-second", "pw-third")

	raw, err := os.ReadFile(r.path)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"sk-first", "pw-first", "sk-never", "sk-second", "pw-second", "pw-third"} {
		if bytes.Contains(raw, []byte(secret)) {
			t.Errorf("%s is in the store's file", secret)
		}
	}
}

// A record whose secrets cannot be opened closes its sandbox.
func TestDamagedNetworkSecretsClose(t *testing.T) {
	r := newRig(t)
	n := r.open()
	what := spec("a")
	what.Network = injecting("Bearer sk-first", "pw-first")
	record, err := n.Create(t.Context(), what)
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
	_, err = r.store.UpdateSandbox(t.Context(), record.ID, func(s *store.Sandbox) error {
		s.NetworkSecrets[len(s.NetworkSecrets)-1] ^= 1
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	second := r.open()
	defer second.Close()
	if r.policy(record.Slot) != nil || r.tenant(record).Policy != nil {
		t.Error("the sandbox is open")
	}
}
