package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// listing is the table of the connection tracker as text. For a list over
// netlink the kernel locks each place of the table, of which there are as many
// as there may be flows, also where nearly all are empty: 4 ms for 262,144 of
// them. For the text it only looks at them: 0.2 ms.
//
// The text comes a page at a time, and between two of them the kernel remembers
// how many entries of a place it has shown. If one of these goes right then,
// another is passed over. So a text of more than one page is not the last word.
type listing struct {
	mu   sync.Mutex
	file *os.File // nil where there is no such text
	text []byte   // room for it
}

// openListing opens the text of the calling thread's network namespace. Where
// there is none, whatever the reason, netlink has to do.
func openListing() *listing {
	file, err := os.Open("/proc/thread-self/net/nf_conntrack")
	if err != nil {
		return &listing{}
	}
	return &listing{file: file}
}

func (l *listing) close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// errNoListing: the table is to be asked for over netlink.
var errNoListing = errors.New("the connection tracker's table cannot be read as text")

const (
	pageSize    = 4096    // the smallest of all machines
	longestLine = 1024    // and more
	maxListing  = 1 << 20 // of some 4,000 entries: with more, netlink is faster
)

// of returns the entries that begin or end at a slot, and whether they are
// certainly all. Any error means that the text is of no use.
func (l *listing) of(s Slot) (found []tracked, all bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil, false, errNoListing
	}
	if err := l.read(); err != nil {
		return nil, false, fmt.Errorf("%w: %w", errNoListing, err)
	}
	all = len(l.text) <= pageSize-longestLine // then there was room for another line
	own4, own6 := listed(s.IP4), listed(s.IP6)
	for line := range bytes.Lines(l.text) {
		if !bytes.Contains(line, own4) && !bytes.Contains(line, own6) {
			continue
		}
		c, err := parseListed(string(line))
		if err != nil {
			return nil, false, fmt.Errorf("%w: %w", errNoListing, err)
		}
		found = append(found, c)
	}
	return found, all, nil
}

// read reads the text anew.
func (l *listing) read() error {
	if _, err := l.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	l.text = l.text[:0]
	for len(l.text) < maxListing {
		l.text = slices.Grow(l.text, 16*pageSize)
		n, err := l.file.Read(l.text[len(l.text):cap(l.text)])
		l.text = l.text[:len(l.text)+n]
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("it has more than %d bytes", maxListing)
}

// listed is how a line names a source. Whose line names an address only as a
// destination has never answered and been answered from elsewhere.
func listed(a netip.Addr) []byte { return []byte(" src=" + a.StringExpanded() + " ") }

// parseListed reads one line: family, protocol and state, each by name and
// number, then what names the flow in its two directions, each from its src on.
func parseListed(line string) (tracked, error) {
	fields := strings.Fields(line)
	var ways []map[string]string
	for _, f := range fields {
		name, value, ok := strings.Cut(f, "=")
		if name == "src" {
			ways = append(ways, map[string]string{})
		}
		if ok && len(ways) > 0 {
			ways[len(ways)-1][name] = value
		}
	}
	if len(fields) < 4 || len(ways) != 2 {
		return tracked{}, fmt.Errorf("cannot read the entry %q", line)
	}
	proto, err := strconv.ParseUint(fields[3], 10, 8)
	orig, reply := ways[0], ways[1]
	r := words{err: err}
	c := tracked{src: r.addr(orig, "src"), dst: r.addr(reply, "src"), proto: uint8(proto)}
	c.family = unix.AF_INET
	if c.src.Is6() {
		c.family = unix.AF_INET6
	}
	ports := c.proto != unix.IPPROTO_ICMP && c.proto != unix.IPPROTO_ICMPV6
	if ports {
		c.port = uint16(r.number(reply, "sport", 16))
	}
	c.key = r.key(c, orig, ports)
	if zone := reply["zone"]; zone != "" && zone != "0" {
		c.key = attr(c.key, ctaZone, binary.BigEndian.AppendUint16(nil, uint16(r.number(reply, "zone", 16))))
	}
	if r.err != nil {
		return tracked{}, fmt.Errorf("cannot read the entry %q: %w", line, r.err)
	}
	return c, nil
}

// words reads values and keeps the first error.
type words struct{ err error }

func (r *words) addr(way map[string]string, name string) netip.Addr {
	a, err := netip.ParseAddr(way[name])
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%s: %w", name, err)
	}
	return a
}

func (r *words) number(way map[string]string, name string, bits int) uint64 {
	n, err := strconv.ParseUint(way[name], 10, bits)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%s: %w", name, err)
	}
	return n
}

// key names the entry when it is deleted. It lacks the number that a list over
// netlink gives, so it means whatever flow goes the same way now.
func (r *words) key(c tracked, orig map[string]string, ports bool) []byte {
	dst := r.addr(orig, "dst")
	from, to := uint16(nl.CTA_IP_V4_SRC), uint16(nl.CTA_IP_V4_DST)
	if c.family == unix.AF_INET6 {
		from, to = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	be16 := func(b []byte, kind uint16, name string) []byte {
		return attr(b, kind, binary.BigEndian.AppendUint16(nil, uint16(r.number(orig, name, 16))))
	}
	return nest(nil, nl.CTA_TUPLE_ORIG, func(t []byte) []byte {
		t = nest(t, nl.CTA_TUPLE_IP, func(b []byte) []byte {
			return attr(attr(b, from, c.src.AsSlice()), to, dst.AsSlice())
		})
		return nest(t, nl.CTA_TUPLE_PROTO, func(b []byte) []byte {
			b = attr(b, nl.CTA_PROTO_NUM, []byte{c.proto})
			if ports {
				return be16(be16(b, nl.CTA_PROTO_SRC_PORT, "sport"), nl.CTA_PROTO_DST_PORT, "dport")
			}
			kind, code, id := uint16(ctaICMPType), uint16(ctaICMPCode), uint16(ctaICMPID)
			if c.proto == unix.IPPROTO_ICMPV6 {
				kind, code, id = ctaICMP6Type, ctaICMP6Code, ctaICMP6ID
			}
			b = be16(b, id, "id")
			b = attr(b, kind, []byte{byte(r.number(orig, "type", 8))})
			return attr(b, code, []byte{byte(r.number(orig, "code", 8))})
		})
	})
}

// From linux/netfilter/nfnetlink_conntrack.h.
const (
	ctaICMPID, ctaICMPType, ctaICMPCode    = 4, 5, 6
	ctaICMP6ID, ctaICMP6Type, ctaICMP6Code = 7, 8, 9
)
