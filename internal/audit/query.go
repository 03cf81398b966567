package audit

import (
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
)

// How many records one page holds.
const (
	DefaultLimit = 100
	MaxLimit     = 1000
)

// Filter says which records are wanted. Its zero value wants none: either one
// sandbox is named or Everyone is set.
type Filter struct {
	Sandbox string
	// Everyone wants the records of all sandboxes, and those that belong to
	// none. Sandbox does not count then.
	Everyone bool
	// Since wants only records after this cursor.
	Since uint64
	// Verdict wants only records with this verdict; nil means both.
	Verdict *policy.Verdict
	// Name wants only records about this name, or with "*." in front about
	// names below it. Empty means all, also those without a name.
	Name string
	// Protocol wants only records of this protocol; empty means all.
	Protocol Protocol
	// Direction wants only flows in this direction; nil means both.
	Direction *Direction
	// Address wants only flows to addresses in this prefix; the zero Prefix
	// means all, also those without an address.
	Address netip.Prefix
	// From wants only flows that began at this time or later.
	From time.Time
	// Limit is how many records a page holds at most; 0 means DefaultLimit, and
	// more than MaxLimit means MaxLimit.
	Limit int
	// Latest wants the last records that match rather than the first. It does
	// not count for followers.
	Latest bool
}

// Page is a part of the log.
type Page struct {
	// Records are in the order of their cursors.
	Records []Record
	// Next is the cursor after which to continue.
	Next uint64
	// Lost counts the records, wanted or not, that made room for newer ones
	// before they were read. When not even the record that Since names is there
	// any more, only that there are some is known, and 1 stands for it.
	Lost uint64
}

func (f *Filter) limit() int {
	if f.Limit <= 0 {
		return DefaultLimit
	}
	return min(f.Limit, MaxLimit)
}

// covers reports whether a record is in the part of the log that f looks at.
func (f *Filter) covers(r *Record) bool {
	return f.Everyone || f.Sandbox != "" && r.Sandbox == f.Sandbox
}

// wants reports whether a record of that part matches.
func (f *Filter) wants(r *Record) bool {
	switch {
	case f.Verdict != nil && *f.Verdict != r.Verdict,
		f.Protocol != "" && f.Protocol != r.Protocol,
		f.Direction != nil && *f.Direction != r.Direction,
		f.Address.IsValid() && !f.Address.Contains(r.Dst.Addr()),
		r.Time.Before(f.From):
		return false
	}
	if suffix, below := strings.CutPrefix(f.Name, "*"); below {
		return r.Name != "" && strings.HasSuffix(r.Name, suffix)
	}
	return f.Name == "" || f.Name == r.Name
}

// Query returns the records that match: the first ones, or the last ones if f
// says so.
func (l *Log) Query(f Filter) Page {
	found, lost := l.since(&f)
	page := Page{Next: f.Since, Lost: lost}
	if f.Latest {
		page.fillBackwards(&f, found)
	} else {
		page.fill(&f, found)
	}
	return page
}

// since returns all records that a query has to look at. Copying the pointers
// is what is done under the lock; looking at them is not.
func (l *Log) since(f *Filter) (found []*Record, lost uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.ringFor(f)
	if r == nil {
		return nil, 0
	}
	seq, lost := r.find(f.Since)
	return r.from(seq, math.MaxInt), lost
}

// ringFor returns the part of the log that f looks at; nil when nothing is
// there. The caller holds l.mu.
func (l *Log) ringFor(f *Filter) *ring {
	if f.Everyone {
		return l.all
	}
	return l.sandboxes[f.Sandbox]
}

// fill adds the first records that match.
func (p *Page) fill(f *Filter, found []*Record) {
	limit := f.limit()
	for _, r := range found {
		if len(p.Records) == limit {
			return
		}
		p.Next = r.Cursor
		if f.wants(r) {
			p.Records = append(p.Records, *r)
		}
	}
}

// fillBackwards adds the last records that match.
func (p *Page) fillBackwards(f *Filter, found []*Record) {
	limit := f.limit()
	if len(found) > 0 {
		p.Next = found[len(found)-1].Cursor
	}
	for _, r := range slices.Backward(found) {
		if len(p.Records) == limit {
			break
		}
		if f.wants(r) {
			p.Records = append(p.Records, *r)
		}
	}
	slices.Reverse(p.Records)
}
