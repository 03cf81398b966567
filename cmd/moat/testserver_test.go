package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/app"
	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/control"
	"github.com/moat-sandbox/moat/internal/guest"
	"github.com/moat-sandbox/moat/internal/ingress"
	"github.com/moat-sandbox/moat/internal/ingress/link"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
	"github.com/moat-sandbox/moat/internal/store/bolt"
	"github.com/moat-sandbox/moat/internal/store/storetest"
	"github.com/moat-sandbox/moat/internal/vault"
)

// testServer is a server with the real API, gateway, store and guest daemons.
// What it lacks is isolation: its sandboxes are daemons on loopback addresses
// that run commands right here. The whole server is tested in the laboratory.
type testServer struct {
	dataDir string
	url     string
	key     string // of the default team
	flows   *audit.Log
}

const testDomain = "moat.test"

// started is what the tests need to end a server.
type started interface {
	Cleanup(func())
	Fatal(...any)
}

func startServer(t started, dir string) *testServer {
	s := &testServer{dataDir: filepath.Join(dir, "data")}
	must(t, os.Mkdir(s.dataDir, 0o700))
	log := slog.New(slog.DiscardHandler)
	records, err := bolt.Open(filepath.Join(s.dataDir, "moat.db"))
	must(t, err)
	t.Cleanup(func() { must(t, records.Close()) })
	key, err := control.Bootstrap(context.Background(), records, secret.String{})
	must(t, err)
	s.key = key.Reveal()

	e := &engine{Records: storetest.Records{Store: records, Before: func() error { return nil }}, dir: s.dataDir, lives: make(map[string]*life)}
	t.Cleanup(e.killAll)
	flows, err := audit.New(audit.Config{})
	must(t, err)
	s.flows, e.flows = flows, flows
	master, err := secret.OpenMaster(filepath.Join(s.dataDir, "master.key"))
	must(t, err)
	secrets, err := vault.Open(context.Background(), vault.Config{Store: records, Master: master, Logger: log})
	must(t, err)
	lifetime, end := context.WithCancel(context.Background())
	t.Cleanup(end)
	a, err := control.New(control.Config{
		Store: records, Secrets: secrets, Flows: flows, Lifetime: lifetime, Engine: e, Templates: &templates{}, Domain: testDomain, Scheme: "http", MaxTimeout: time.Hour, Logger: log,
		Compile: func(d policy.Document) (*policy.Policy, error) { return policy.Parse(d, policy.Options{Rules: true}) },
	})
	must(t, err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s.url = "http://" + tcp.Addr().String()
	socket, err := net.Listen("unix", filepath.Join(s.dataDir, app.SocketName))
	must(t, err)
	for listener, handler := range map[net.Listener]http.Handler{tcp: a.Handler(), socket: a.Operator()} {
		door, err := ingress.New(ingress.Config{Domain: testDomain, Sandboxes: e, API: handler, Logger: log})
		must(t, err)
		server := &http.Server{Handler: door}
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(listener) }()
		t.Cleanup(func() {
			must(t, errors.Join(server.Close(), door.Close()))
			<-ended
		})
	}
	return s
}

func must(t started, err error) {
	if err != nil {
		t.Fatal(err)
	}
}

// engine implements control.Engine and ingress.Lookup.
type engine struct {
	storetest.Records
	dir   string
	flows *audit.Log

	mu    sync.Mutex
	lives map[string]*life
}

// life is one running sandbox.
type life struct {
	target ingress.Target
	stop   context.CancelFunc
	ended  chan error
}

// daemons numbers the daemons of all servers of this process: each has an
// address of its own, because all have the same port.
var daemons = make(chan byte, 1)

func init() { daemons <- 1 }

func nextAddr() netip.Addr {
	n := <-daemons
	daemons <- n + 1
	pid := os.Getpid()
	return netip.AddrFrom4([4]byte{127, byte(pid>>8) | 0x40, byte(pid), n})
}

func (e *engine) Create(ctx context.Context, spec sandbox.Spec) (store.Sandbox, error) {
	now := time.Now().UTC()
	record := store.Sandbox{
		ID: sandbox.NewID(), Team: spec.Team, TemplateID: "base", Alias: spec.Template, State: sandbox.Running,
		StartedAt: now, EndAt: now.Add(spec.Timeout), Secure: spec.Secure,
		Limits: sandbox.Limits{CPUs: 2, MemoryMB: 512, DiskMB: 1024}, Metadata: spec.Metadata,
		Network: spec.Network, InternetAccess: spec.InternetAccess, Generation: 1,
		Ingress: spec.Ingress,
	}
	if spec.Ingress.Private() {
		record.TrafficNonce = sandbox.NewNonce()
	}
	l, err := e.start(ctx, record, spec.Env)
	if err != nil {
		return store.Sandbox{}, err
	}
	e.mu.Lock()
	e.lives[record.ID] = l
	e.mu.Unlock()
	return record, e.CreateSandbox(ctx, record)
}

func (e *engine) start(ctx context.Context, record store.Sandbox, env map[string]string) (*life, error) {
	addr := nextAddr()
	root := filepath.Join(e.dir, record.ID)
	if err := os.Mkdir(root, 0o700); err != nil {
		return nil, err
	}
	daemon, err := guest.New(guest.Config{
		Addr: netip.AddrPortFrom(addr, api.GuestPort).String(), Path: os.Getenv("PATH"), Root: root,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	l := &life{stop: stop, ended: make(chan error, 1)}
	l.target = ingress.Target{
		ID: record.ID, Addr: addr, Done: run.Done(), GuestToken: e.GuestToken(record),
		Public: record.Ingress.Public, Ports: record.Ingress.Ports, Token: e.TrafficToken(record), LinkKey: linkKey(record), MaskHost: record.Ingress.MaskHost,
	}
	go func() { l.ended <- daemon.Run(run) }()
	body, err := json.Marshal(api.GuestInit{
		AccessToken: e.GuestToken(record).Reveal(), EnvVars: env, DefaultUser: "root", DefaultWorkdir: root,
	})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+daemon.Addr().String()+"/init", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusNoContent {
		return nil, fmt.Errorf("init: %s", answer.Status)
	}
	return l, nil
}

func (e *engine) Sandbox(id string) (ingress.Target, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l, ok := e.lives[id]
	if !ok {
		return ingress.Target{}, false
	}
	return l.target, true
}

func (e *engine) Kill(ctx context.Context, id string) error {
	e.mu.Lock()
	l, ok := e.lives[id]
	delete(e.lives, id)
	e.mu.Unlock()
	if !ok {
		return sandbox.ErrNotFound
	}
	l.stop()
	e.flows.Retire(id, api.DefaultTeam)
	return errors.Join(<-l.ended, e.DeleteSandbox(ctx, id))
}

func (e *engine) killAll() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.lives {
		l.stop()
		<-l.ended
	}
}

func (e *engine) Samples(context.Context, string, time.Time, time.Time) ([]sandbox.Sample, error) {
	return nil, nil
}

func (e *engine) GuestToken(s store.Sandbox) secret.String {
	return secret.New(secret.Hash("guest " + s.ID))
}

func (e *engine) TrafficToken(s store.Sandbox) secret.String {
	if s.TrafficNonce == "" {
		return secret.String{}
	}
	return secret.New(secret.Hash("traffic " + s.ID + s.TrafficNonce))
}

func linkKey(s store.Sandbox) secret.String {
	return secret.New(secret.Hash("link " + s.ID + s.TrafficNonce))
}

func (e *engine) RotateTrafficToken(ctx context.Context, id string) (secret.String, error) {
	record, err := e.UpdateSandbox(ctx, id, func(s *store.Sandbox) error {
		if !s.Ingress.Private() {
			return sandbox.ErrPublic
		}
		s.TrafficNonce = sandbox.NewNonce()
		return nil
	})
	if err != nil {
		return secret.String{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lives[id].target.Token, e.lives[id].target.LinkKey = e.TrafficToken(record), linkKey(record)
	return e.lives[id].target.Token, nil
}

func (e *engine) Link(id string, port uint16, life time.Duration) (string, time.Time, error) {
	target, ok := e.Sandbox(id)
	if !ok {
		return "", time.Time{}, sandbox.ErrNotFound
	}
	query, grant, err := link.New(target.LinkKey, id, port, life)
	return query, grant.Expires, err
}

func (e *engine) Count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.lives)
}

// templates implements control.Templates over a list.
type templates struct {
	mu   sync.Mutex
	list []store.Template
}

func (l *templates) Resolve(_ context.Context, ref string) (store.Template, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ref == "base" {
		return store.Template{ID: "base"}, nil
	}
	if i := l.find(ref); i >= 0 {
		return l.list[i], nil
	}
	return store.Template{}, sandbox.ErrTemplateNotFound
}

func (l *templates) find(ref string) int {
	return slices.IndexFunc(l.list, func(t store.Template) bool { return t.ID == ref || slices.Contains(t.Names, ref) })
}

func (l *templates) add(source string, names []string) (store.Template, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	added := store.Template{
		ID: "tpl" + strconv.Itoa(len(l.list)), Names: names, Source: source, SizeBytes: 12_345_678, CreatedAt: time.Now(),
	}
	l.list = append(l.list, added)
	return added, nil
}

func (l *templates) AddDir(_ context.Context, path string, names []string) (store.Template, error) {
	return l.add("directory "+path, names)
}

func (l *templates) AddTar(_ context.Context, path string, names []string) (store.Template, error) {
	return l.add("tarball "+path, names)
}

func (l *templates) AddImage(_ context.Context, ref string, names []string, insecure bool) (store.Template, error) {
	return l.add(fmt.Sprintf("image %s insecure=%t", ref, insecure), names)
}

func (l *templates) Remove(_ context.Context, ref string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := l.find(ref)
	if i < 0 {
		return sandbox.ErrTemplateNotFound
	}
	l.list = slices.Delete(l.list, i, i+1)
	return nil
}

func (l *templates) List(context.Context) ([]store.Template, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.list), nil
}
