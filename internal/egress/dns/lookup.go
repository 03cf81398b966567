package dns

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
)

// secondFamilyDelay is how much longer a lookup waits for the addresses of the
// other family once it has some of one (RFC 8305, section 3).
const secondFamilyDelay = 50 * time.Millisecond

// Lookup returns the addresses of a name, and for how long they are valid.
// Addresses that are never reachable are left out; if no other is left, the
// error is an *egress.ForbiddenError. If there are none at all it is one of the
// errors that package egress lists.
func (r *Resolver) Lookup(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
	asked, err := policy.ParseName(name)
	if err != nil {
		return nil, 0, fmt.Errorf("look up: %w: %w", egress.ErrInvalidName, err)
	}
	var found addresses
	six, four := r.start(question{asked, wire.TypeAAAA}), r.start(question{asked, wire.TypeA})
	sixDone, fourDone := six.done, four.done
	var enough <-chan time.Time
	for sixDone != nil || fourDone != nil {
		select {
		case <-sixDone:
			found.add(six)
			sixDone = nil
		case <-fourDone:
			found.add(four)
			fourDone = nil
		case <-enough:
			sixDone, fourDone = nil, nil
		case <-ctx.Done():
			return nil, 0, fmt.Errorf("look up %s: %w", name, ctx.Err())
		}
		if enough == nil && len(found.addrs) > 0 {
			enough = time.After(secondFamilyDelay)
		}
	}
	if len(found.addrs) == 0 {
		return nil, 0, fmt.Errorf("look up %s: %w", name, found.reason())
	}
	return found.addrs, found.ttl, nil
}

// Known is Lookup for a name of which all is in the cache.
func (r *Resolver) Known(name policy.Name) (addrs []netip.Addr, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	six, four := r.cache.get(question{name, wire.TypeAAAA}, now), r.cache.get(question{name, wire.TypeA}, now)
	if six == nil || four == nil {
		return nil, false
	}
	return append(six.addrs(), four.addrs()...), true
}

// addresses collects what both families answer.
type addresses struct {
	addrs     []netip.Addr
	ttl       time.Duration
	forbidden error
	missing   error
	failed    error
}

func (a *addresses) add(f *flight) {
	if f.err != nil {
		a.failed = f.err
		return
	}
	if f.answer.Forbidden != nil {
		a.forbidden = f.answer.Forbidden
	}
	addrs := f.answer.addrs()
	switch {
	case len(addrs) > 0:
		ttl := f.answer.validFor(time.Now())
		if len(a.addrs) == 0 || ttl < a.ttl {
			a.ttl = ttl
		}
		a.addrs = append(a.addrs, addrs...)
	case f.answer.Rcode == wire.RcodeNameError:
		a.missing = egress.ErrNoSuchName
	case a.missing == nil:
		a.missing = egress.ErrNoAddress
	}
}

// reason says why there are no addresses: that they are forbidden counts for
// more than that a server failed, and a failure for more than that one family
// has none.
func (a *addresses) reason() error {
	switch {
	case a.forbidden != nil:
		return a.forbidden
	case a.failed != nil:
		return a.failed
	default:
		return a.missing
	}
}
