package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/kernel"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
	"github.com/moat-sandbox/moat/internal/store/bolt"
)

// errBroken is what a broken part of the rig answers.
var errBroken = errors.New("broken on purpose")

// rig is a machine whose parts can be broken one by one. It stands in for the
// kernel and the runtime because neither fails on demand; the store is the real
// one. The parts themselves are tested where they live, and all together in
// test/e2e.
type rig struct {
	t     *testing.T
	path  string
	store *brokenStore

	mu      sync.Mutex
	broken  map[string]bool // names of steps that fail
	slots   map[int]*policy.Policy
	boxes   map[string]*rigBox
	applied int

	// tenants are the present node's.
	tenants *egress.Registry
	flows   rigFlows
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{
		t: t, path: filepath.Join(t.TempDir(), "moat.db"),
		broken: map[string]bool{}, slots: map[int]*policy.Policy{}, boxes: map[string]*rigBox{},
	}
	r.openStore()
	t.Cleanup(r.stop)
	return r
}

// stop ends the guests that a test left running.
func (r *rig) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.boxes {
		b.hangUp()
	}
}

func (r *rig) openStore() {
	records, err := bolt.Open(r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.store = &brokenStore{Store: records, rig: r}
	r.t.Cleanup(func() { _ = records.Close() })
}

// open starts a node on the rig, as a server does.
func (r *rig) open() *Node {
	r.t.Helper()
	return r.openWithPool(0)
}

// openWithPool is open with warm boxes, of which it waits for none.
func (r *rig) openWithPool(size int) *Node {
	r.t.Helper()
	r.tenants = new(egress.Registry)
	n, err := Open(r.t.Context(), Config{
		Store: r.store, Network: r, Tenants: r.tenants, Flows: &r.flows, Audit: r.audit(), Runtime: rigRuntime{r}, Templates: r,
		Master: r.master(), Logger: slog.New(slog.DiscardHandler),
		Compile: func(d policy.Document) (*policy.Policy, error) {
			return policy.Parse(d, policy.Options{Rules: true})
		},
		Warm: sandbox.Limits{MemoryMB: 256}, Pool: size, Ahead: "base", MaxSandboxes: 3, TeamLimit: 2,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	n.guest.port = rigGuestPort
	return n
}

// rigGuestPort is not the guest's own port, which another test may be using on
// all addresses.
const rigGuestPort = 49984

// audit is an empty log.
func (r *rig) audit() *audit.Log {
	l, err := audit.New(audit.Config{})
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

func (r *rig) master() secret.Master {
	m, err := secret.OpenMaster(filepath.Join(filepath.Dir(r.path), "master.key"))
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

func (r *rig) breaks(step string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken[step] {
		return fmt.Errorf("%s: %w", step, errBroken)
	}
	return nil
}

func (r *rig) setBroken(step string, broken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken[step] = broken
}

// traces lists whatever exists on the rig.
func (r *rig) traces() []string {
	records, err := r.store.Sandboxes(context.Background(), "")
	if err != nil {
		r.t.Fatal(err)
	}
	var found []string
	for _, record := range records {
		found = append(found, "record "+record.ID)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.boxes {
		found = append(found, "box "+id)
	}
	for index := range r.slots {
		found = append(found, fmt.Sprint("slot ", index))
	}
	slices.Sort(found)
	return found
}

func (r *rig) policy(slot int) *policy.Policy {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.slots[slot]
}

// The network.

func (r *rig) Create(context.Context) (kernel.Slot, error) {
	if err := r.breaks("slot create"); err != nil {
		return kernel.Slot{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	index := 1
	for r.taken(index) {
		index++
	}
	r.slots[index] = nil
	return rigSlot(index), nil
}

func (r *rig) taken(index int) bool { _, ok := r.slots[index]; return ok }

// rigSlot has a loopback address of its own, where the box listens.
func rigSlot(index int) kernel.Slot {
	return kernel.Slot{
		Index: index, NetNS: fmt.Sprint(index),
		IP4: netip.AddrFrom4([4]byte{127, 77, 1, byte(index)}),
		IP6: netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(index)}),
	}
}

func (r *rig) Apply(_ context.Context, slot kernel.Slot, p *policy.Policy) (kernel.Receipt, error) {
	if err := r.breaks("apply"); err != nil {
		return kernel.Receipt{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expectTenant(slot, p != nil)
	r.slots[slot.Index] = p
	r.applied++
	return kernel.Receipt{Cut: r.applied}, nil
}

func (r *rig) Destroy(_ context.Context, slot kernel.Slot) error {
	if err := r.breaks("slot destroy"); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.tenants.Tenant(slot.IP4); known {
		r.t.Errorf("slot %d is given back while its addresses still are a sandbox's", slot.Index)
	}
	delete(r.slots, slot.Index)
	return nil
}

// expectTenant says so if a slot opens whose addresses are nobody's yet.
func (r *rig) expectTenant(slot kernel.Slot, opens bool) {
	for _, addr := range []netip.Addr{slot.IP4, slot.IP6} {
		if t, ok := r.tenants.Tenant(addr); opens && (!ok || t.Sandbox == "" || t.Team == "") {
			r.t.Errorf("slot %d opens while %v belongs to %+v", slot.Index, addr, t)
		}
	}
}

func (r *rig) Load(index int) (kernel.Slot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.taken(index) {
		return kernel.Slot{}, errors.New("no such slot")
	}
	return rigSlot(index), nil
}

func (r *rig) Adopt(_ context.Context, tenants []kernel.Tenant) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range tenants {
		r.expectTenant(t.Slot, t.Policy != nil)
		r.slots[t.Slot.Index] = t.Policy
	}
	return nil
}

func (r *rig) Sweep(_ context.Context, keep []kernel.Slot) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for index := range r.slots {
		if !slices.ContainsFunc(keep, func(s kernel.Slot) bool { return s.Index == index }) {
			delete(r.slots, index)
		}
	}
	return nil
}

// The templates.

func (r *rig) Resolve(_ context.Context, ref string) (store.Template, error) {
	if ref != "base" {
		return store.Template{}, sandbox.ErrTemplateNotFound
	}
	return store.Template{
		ID: "base", User: "user", Workdir: "/home/user", Env: []string{"LANG=C.UTF-8", "A=template"},
		Limits: sandbox.Limits{MemoryMB: 256},
	}, nil
}

// The runtime.

type rigRuntime struct{ *rig }

func (r rigRuntime) Name() string { return "rig" }

func (r rigRuntime) Probe(context.Context) (sandbox.Caps, error) {
	return sandbox.Caps{Kernel: true}, nil
}

func (r rigRuntime) Prepare(_ context.Context, id, netns string, _ sandbox.Limits) (sandbox.Box, error) {
	if err := r.breaks("boot"); err != nil {
		return nil, err
	}
	var index int
	if _, err := fmt.Sscan(netns, &index); err != nil {
		return nil, err
	}
	b := &rigBox{rig: r.rig, id: id, slot: rigSlot(index), ended: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.boxes[id] = b
	return b, nil
}

func (r rigRuntime) Load(_ context.Context, id string) (sandbox.Box, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b, ok := r.boxes[id]; ok {
		return b, nil
	}
	return nil, sandbox.ErrGone
}

func (r rigRuntime) List(context.Context) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []string
	for id := range r.boxes {
		ids = append(ids, id)
	}
	return ids, nil
}

func (r rigRuntime) Remove(ctx context.Context, id string) error {
	r.mu.Lock()
	b := r.boxes[id]
	r.mu.Unlock()
	return b.Destroy(ctx)
}

func (r rigRuntime) Close() error { return nil }

// rigBox is a box whose guest is an HTTP server on the slot's loopback address.
type rigBox struct {
	*rig
	id    string
	slot  kernel.Slot
	start sync.Mutex   // guards the two below
	guest *http.Server // nil before the box is started
	door  net.Listener // closed by us: a server does not know it before it serves
	told  api.GuestInit
	once  sync.Once
	ended chan struct{}
	oom   bool
}

func (b *rigBox) ID() string { return b.id }

func (b *rigBox) Start(context.Context, sandbox.StartSpec) error {
	if err := b.breaks("start"); err != nil {
		return err
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(b.slot.IP4, rigGuestPort).String())
	if err != nil {
		return err
	}
	b.start.Lock()
	defer b.start.Unlock()
	b.door, b.guest = l, &http.Server{Handler: b.handler()}
	go func(s *http.Server) { _ = s.Serve(l) }(b.guest)
	return nil
}

// hangUp ends the guest, if there is one.
func (b *rigBox) hangUp() {
	b.start.Lock()
	defer b.start.Unlock()
	if b.guest != nil {
		_ = b.door.Close()
		_ = b.guest.Close()
	}
}

func (b *rigBox) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-b.ended:
	case <-ctx.Done():
	}
	select {
	case <-b.ended:
		return sandbox.Exit{OOM: b.oom, Status: -1, At: time.Now()}, nil
	default:
		return sandbox.Exit{}, ctx.Err()
	}
}

func (b *rigBox) Usage(context.Context) (sandbox.Usage, error) { return sandbox.Usage{}, nil }

func (b *rigBox) Destroy(context.Context) error {
	if err := b.breaks("box destroy"); err != nil {
		return err
	}
	b.once.Do(func() { close(b.ended) })
	b.hangUp()
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.boxes, b.id)
	return nil
}

// brokenStore is the real store with failures in between.
type brokenStore struct {
	store.Store
	rig *rig
}

func (s *brokenStore) CreateSandbox(ctx context.Context, record store.Sandbox) error {
	if err := s.rig.breaks("record"); err != nil {
		return err
	}
	return s.Store.CreateSandbox(ctx, record)
}

func (s *brokenStore) UpdateSandbox(ctx context.Context, id string, change func(*store.Sandbox) error) (store.Sandbox, error) {
	if err := s.rig.breaks("update"); err != nil {
		return store.Sandbox{}, err
	}
	if s.rig.breaks("disk full") != nil {
		return store.Sandbox{}, store.ErrFull
	}
	return s.Store.UpdateSandbox(ctx, id, change)
}

func (s *brokenStore) DeleteSandbox(ctx context.Context, id string) error {
	if err := s.rig.breaks("delete"); err != nil {
		return err
	}
	return s.Store.DeleteSandbox(ctx, id)
}

// handler is the part of the guest daemon that a node talks to.
func (b *rigBox) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /init", func(w http.ResponseWriter, r *http.Request) {
		if b.breaks("init") != nil || json.NewDecoder(r.Body).Decode(&b.told) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Access-Token") != b.told.AccessToken {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"ts":1,"cpu_count":2,"cpu_used_pct":1.5,"mem_total":100,"mem_used":40,"mem_cache":3,"disk_used":7,"disk_total":9}`)
	})
	return mux
}
