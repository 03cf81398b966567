package egress

import (
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Registry knows the sandboxes of one machine by their addresses. It
// implements Tenants; its zero value is empty and ready for use. Asking takes
// no lock and allocates nothing, however many sandboxes there are and however
// often they change.
type Registry struct {
	mu     sync.Mutex // serialises changes
	known  atomic.Pointer[map[netip.Addr]*Tenant]
	former map[netip.Addr]Tenant // the latest of addresses that are nobody's
}

var _ Tenants = (*Registry)(nil)

// Tenant implements Tenants.
func (r *Registry) Tenant(src netip.Addr) (Tenant, bool) {
	known := r.known.Load()
	if known == nil {
		return Tenant{}, false
	}
	t, ok := (*known)[src]
	if !ok {
		return Tenant{}, false
	}
	return *t, true
}

// Last returns the tenant that an address has, or had before it became nobody's:
// what is learned late may still be about that one. Of a former tenant there is
// no policy.
func (r *Registry) Last(src netip.Addr) (Tenant, bool) {
	if t, ok := r.Tenant(src); ok {
		return t, true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.former[src]
	return t, ok
}

// Put makes t the tenant of both addresses, in one step. Whoever asks after it
// has returned is told so.
func (r *Registry) Put(addr4, addr6 netip.Addr, t Tenant) {
	r.change(func(known map[netip.Addr]*Tenant) {
		for _, addr := range []netip.Addr{addr4, addr6} {
			if addr.IsValid() {
				known[addr] = &t
				delete(r.former, addr)
			}
		}
	})
}

// Remove makes the addresses nobody's, as far as they belong to the sandbox:
// their next tenant is left alone.
func (r *Registry) Remove(addr4, addr6 netip.Addr, sandbox string) {
	r.change(func(known map[netip.Addr]*Tenant) {
		for _, addr := range []netip.Addr{addr4, addr6} {
			if t := known[addr]; t != nil && t.Sandbox == sandbox {
				delete(known, addr)
				r.retire(addr, *t)
			}
		}
	})
}

// retire remembers who had an address. The caller holds r.mu.
func (r *Registry) retire(addr netip.Addr, t Tenant) {
	if r.former == nil {
		r.former = make(map[netip.Addr]Tenant)
	}
	t.Policy = nil
	r.former[addr] = t
}

// change swaps the map for a changed copy: readers have the one or the other.
func (r *Registry) change(edit func(map[netip.Addr]*Tenant)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := make(map[netip.Addr]*Tenant)
	if known := r.known.Load(); known != nil {
		next = maps.Clone(*known)
	}
	edit(next)
	r.known.Store(&next)
}
