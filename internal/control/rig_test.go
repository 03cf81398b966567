package control

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
	"github.com/moat-sandbox/moat/internal/store/bolt"
	"github.com/moat-sandbox/moat/internal/store/storetest"
	"github.com/moat-sandbox/moat/internal/vault"
)

// Keys of two teams.
const (
	keyA = "e2b_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	keyB = "e2b_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// rig is the API over a real store, with a stand-in for the node.
type rig struct {
	t         *testing.T
	api       *API
	store     *bolt.Store
	engine    *engine
	templates *templates
	flows     *audit.Log
	stop      context.CancelFunc // ends streams, as a server that stops does
	public    *httptest.Server
	operator  *httptest.Server
	log       *bytes.Buffer // read it after the servers have closed or answered
}

func newRig(t *testing.T, adjust ...func(*Config)) *rig {
	t.Helper()
	records, err := bolt.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { records.Close() })
	r := &rig{t: t, store: records, log: new(bytes.Buffer)}
	r.engine = newEngine(records)
	r.templates = &templates{}
	for name, key := range map[string]string{"a": keyA, "b": keyB} {
		if err := records.CreateKey(t.Context(), keyRecord(name, name, "team-"+name, secret.New(key))); err != nil {
			t.Fatal(err)
		}
	}
	if err := records.PutTemplate(t.Context(), baseTemplate); err != nil {
		t.Fatal(err)
	}
	if r.flows, err = audit.New(audit.Config{PerSandbox: 100}); err != nil {
		t.Fatal(err)
	}
	var lifetime context.Context
	lifetime, r.stop = context.WithCancel(t.Context())
	t.Cleanup(r.stop)
	config := Config{
		Store: records, Engine: r.engine, Templates: r.templates, Flows: r.flows, Lifetime: lifetime,
		Compile:    func(d policy.Document) (*policy.Policy, error) { return policy.Parse(d, policy.Options{Rules: true}) },
		Secrets:    newVault(t, records),
		MaxTimeout: 24 * time.Hour,
		Scheme:     "https",
		Logger:     slog.New(slog.NewTextHandler(&lockedWriter{w: r.log}, nil)),
	}
	for _, change := range adjust {
		change(&config)
	}
	if r.api, err = New(config); err != nil {
		t.Fatal(err)
	}
	r.public = httptest.NewServer(r.api.Handler())
	t.Cleanup(r.public.Close)
	r.operator = httptest.NewServer(r.api.Operator())
	t.Cleanup(r.operator.Close)
	return r
}

func newVault(t *testing.T, records store.Store) *vault.Vault {
	t.Helper()
	master, err := secret.OpenMaster(filepath.Join(t.TempDir(), "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(t.Context(), vault.Config{Store: records, Master: master, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// answer is a response, read to its end.
type answer struct {
	t      *testing.T
	status int
	header http.Header
	body   string
}

// send makes a request as the owner of a key; without one there is no key.
func (r *rig) send(key, method, path, body string) answer {
	r.t.Helper()
	return r.sendTo(r.public, key, method, path, body)
}

func (r *rig) sendTo(server *httptest.Server, key, method, path, body string) answer {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.t.Context(), method, server.URL+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if key != "" {
		request.Header.Set(api.HeaderAPIKey, key)
	}
	return r.do(request)
}

func (r *rig) do(request *http.Request) answer {
	r.t.Helper()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer{r.t, response.StatusCode, response.Header, string(body)}
}

// want checks the status; of an error also its shape and that its message
// contains the text.
func (a answer) want(status int, text ...string) answer {
	a.t.Helper()
	if a.status != status {
		a.t.Errorf("status %d, want %d: %s", a.status, status, a.body)
		return a
	}
	if status == http.StatusNoContent {
		if a.body != "" {
			a.t.Errorf("204 with a body: %q", a.body)
		}
		return a
	}
	if got := a.header.Get("Content-Type"); got != "application/json" {
		a.t.Errorf("Content-Type %q", got)
	}
	if status >= 400 {
		failure := decodeAs[api.Error](a)
		if failure.Code != status || failure.Message == "" {
			a.t.Errorf("error body %s, want code %d and a message", a.body, status)
		}
		for _, part := range text {
			if !strings.Contains(failure.Message, part) {
				a.t.Errorf("message %q, want it to contain %q", failure.Message, part)
			}
		}
	}
	return a
}

func decodeAs[T any](a answer) T {
	a.t.Helper()
	var v T
	if err := json.Unmarshal([]byte(a.body), &v, json.RejectUnknownMembers(true)); err != nil {
		a.t.Fatalf("decode %q: %v", a.body, err)
	}
	return v
}

// create makes a sandbox with the fields given besides the template.
func (r *rig) create(key, fields string) api.Sandbox {
	r.t.Helper()
	body := `{"templateID":"base"}`
	if fields != "" {
		body = `{"templateID":"base",` + fields + `}`
	}
	return decodeAs[api.Sandbox](r.send(key, "POST", "/v2/sandboxes", body).want(http.StatusCreated))
}

func (r *rig) record(id string) store.Sandbox {
	r.t.Helper()
	record, err := r.store.Sandbox(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return record
}

// change edits a record behind the API's back.
func (r *rig) change(id string, edit func(*store.Sandbox)) {
	r.t.Helper()
	_, err := r.store.UpdateSandbox(r.t.Context(), id, func(s *store.Sandbox) error { edit(s); return nil })
	if err != nil {
		r.t.Fatal(err)
	}
}

// engine stands in for the node: it keeps records as the node does and runs
// nothing. The node itself is tested with real sandboxes.
type engine struct {
	storetest.Records

	mu      sync.Mutex
	specs   []sandbox.Spec
	fails   error // what every call returns, when set
	samples map[string][]sandbox.Sample
	spans   [][2]time.Time        // of Samples
	hook    func(context.Context) // called by what may take long
	crash   bool                  // Count panics
}

func newEngine(records store.Store) *engine {
	e := &engine{samples: make(map[string][]sandbox.Sample)}
	e.Records = storetest.Records{Store: records, Before: e.failure, Cut: 3}
	return e
}

// linger is called by what may take long.
func (e *engine) linger(ctx context.Context) {
	if e.hook != nil {
		e.hook(ctx)
	}
}

func (e *engine) failure() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.fails
}

func (e *engine) Create(ctx context.Context, spec sandbox.Spec) (store.Sandbox, error) {
	e.mu.Lock()
	e.specs = append(e.specs, spec)
	e.mu.Unlock()
	if err := e.failure(); err != nil {
		return store.Sandbox{}, err
	}
	e.linger(ctx)
	now := time.Now().UTC()
	record := store.Sandbox{
		ID: sandbox.NewID(), Team: spec.Team, TemplateID: "t1", State: sandbox.Running,
		StartedAt: now, EndAt: now.Add(spec.Timeout), Secure: spec.Secure,
		Limits:   sandbox.Limits{CPUs: 2, MemoryMB: 512, DiskMB: 1024},
		Metadata: spec.Metadata, Network: spec.Network, InternetAccess: spec.InternetAccess, Generation: 1,
		Ingress: spec.Ingress,
	}
	if spec.Ingress.Private() {
		record.TrafficNonce = "1"
	}
	if spec.Template != record.TemplateID {
		record.Alias = spec.Template
	}
	return record, e.Store.CreateSandbox(ctx, record)
}

func (e *engine) Kill(ctx context.Context, id string) error {
	if err := e.failure(); err != nil {
		return err
	}
	e.linger(ctx)
	if err := ctx.Err(); err != nil {
		return err
	}
	return e.Store.DeleteSandbox(ctx, id)
}

func (e *engine) Samples(ctx context.Context, id string, from, to time.Time) ([]sandbox.Sample, error) {
	e.linger(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.spans = append(e.spans, [2]time.Time{from, to})
	samples, known := e.samples[id]
	if !known {
		return nil, sandbox.ErrNotFound
	}
	return samples, e.fails
}

func (e *engine) GuestToken(s store.Sandbox) secret.String {
	if !s.Secure {
		return secret.String{}
	}
	return secret.New("guest-token-of-" + s.ID)
}

func (e *engine) TrafficToken(s store.Sandbox) secret.String {
	if s.TrafficNonce == "" {
		return secret.String{}
	}
	return secret.New("traffic-token-" + s.TrafficNonce + "-of-" + s.ID)
}

func (e *engine) RotateTrafficToken(ctx context.Context, id string) (secret.String, error) {
	if err := e.failure(); err != nil {
		return secret.String{}, err
	}
	record, err := e.Store.UpdateSandbox(ctx, id, func(s *store.Sandbox) error {
		if !s.Ingress.Private() {
			return sandbox.ErrPublic
		}
		s.TrafficNonce += "+1"
		return nil
	})
	return e.TrafficToken(record), err
}

func (e *engine) Link(id string, port uint16, life time.Duration) (string, time.Time, error) {
	return fmt.Sprintf("moat-link=%s.%d.%v", id, port, life), time.Unix(1_800_000_000, 0), e.failure()
}

func (e *engine) Count() int {
	if e.crash {
		panic("count lost its way")
	}
	records, _ := e.Store.Sandboxes(context.Background(), "")
	return len(records)
}

// lastSpec is what the engine was asked for last.
func (e *engine) lastSpec() sandbox.Spec {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.specs[len(e.specs)-1]
}

func (e *engine) created() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.specs)
}

// noSecrets is a vault without any.
type noSecrets struct{ Secrets }

func (noSecrets) Secret(string, string) (secret.String, bool) { return secret.String{}, false }

// openNothing is a store that nobody may ask.
type openNothing struct{ store.Store }

// quoted is text as JSON.
func quoted(text string) string {
	raw, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	return string(raw)
}
