package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/policy"
)

// The connection tracker tells of each flow that it forgets, with what it counted.

// groupDestroy is the netlink group of flows that end.
const groupDestroy = 3 // NFNLGRP_CONNTRACK_DESTROY

// accountFlows makes the tracker count bytes, note times, and tell of every flow
// also when nobody listened as it began. TCP flows that have ended are not to be
// remembered for longer than those that were reset.
func accountFlows() error {
	for _, name := range []string{"nf_conntrack_acct", "nf_conntrack_timestamp", "nf_conntrack_events"} {
		if err := setSysctl("netfilter/"+name, "1"); err != nil {
			return err
		}
	}
	return lowerSysctl("netfilter/nf_conntrack_tcp_timeout_time_wait", 10) // seconds
}

// forgetPause is how often the tracker is made to forget what has expired.
const forgetPause = 2 * time.Second

// forgetExpired makes the tracker forget, at each tick until ctx ends, what has
// expired. Flows are only told later if that fails, so it goes on.
func forgetExpired(ctx context.Context, tick <-chan time.Time, forget func() error, log *slog.Logger) {
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		err := forget()
		if err != nil && !failing {
			log.Warn("flows that have ended are told late", "error", err)
		}
		failing = err != nil
	}
}

// forget makes the tracker forget flows soon after their time. Left alone it
// looks for them once a minute. Asked for a list it drops what has expired from
// it; nothing is on this one.
func (t *tracker) forget() error {
	req := t.request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, unix.AF_UNSPEC)
	req.AddRawData(be32(be32(nil, nl.CTA_MARK, noMark), ctaMarkMask, noMark))
	err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func([]byte) bool { return true })
	if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
		return fmt.Errorf("make the tracker forget: %w", err)
	}
	return nil
}

// noMark is a mark that no flow has, and all of its bits.
const (
	noMark      = 1<<32 - 1
	ctaMarkMask = 21
)

// account is what the tracker counted of a flow.
type account struct {
	up, down    uint64 // bytes
	began, over time.Time
	state       byte // of TCP
	assured     bool // packets went both ways
}

// Attributes in the order of linux/netfilter/nfnetlink_conntrack.h.
const (
	counterBytes   = 2
	timestampStart = 1
	timestampStop  = 2
	statusAssured  = 1 << 2
)

func (a *account) read(kind uint16, value []byte) {
	switch kind {
	case nl.CTA_COUNTERS_ORIG:
		a.up = be64(value, counterBytes)
	case nl.CTA_COUNTERS_REPLY:
		a.down = be64(value, counterBytes)
	case nl.CTA_TIMESTAMP:
		a.began, a.over = moment64(be64(value, timestampStart)), moment64(be64(value, timestampStop))
	case nl.CTA_STATUS:
		a.assured = len(value) == 4 && binary.BigEndian.Uint32(value)&statusAssured != 0
	case nl.CTA_PROTOINFO:
		for proto, values := range attrs(value) {
			for k, v := range attrs(values) {
				if proto == nl.CTA_PROTOINFO_TCP && k == nl.CTA_PROTOINFO_TCP_STATE && len(v) == 1 {
					a.state = v[0]
				}
			}
		}
	}
}

// be64 finds a 64-bit number among attributes; 0 if it is not there.
func be64(b []byte, kind uint16) uint64 {
	for k, v := range attrs(b) {
		if k == kind && len(v) == 8 {
			return binary.BigEndian.Uint64(v)
		}
	}
	return 0
}

// moment64 is a time in nanoseconds since 1970, or none.
func moment64(ns uint64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(ns))
}

// ending reads of a flow that the tracker forgets. It is false for what no slot
// began, and for what was redirected.
func (n *Network) ending(m message, idle timeouts) (Event, bool) {
	if m.kind != unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_DELETE {
		return Event{}, false
	}
	c, err := parseTracked(m.body)
	if err != nil || n.doors.has(c.dst) {
		return Event{}, false
	}
	slot, ok := n.indexOf(c.src)
	if !ok {
		return Event{}, false
	}
	var a account
	for kind, value := range attrs(m.body[genmsgLen:]) {
		a.read(kind, value)
	}
	f := c.flow()
	e := Event{
		Slot: slot, Src: c.src, Proto: f.Proto, Dst: f.Dst, Began: a.began, Outcome: Ended,
		BytesUp: a.up, BytesDown: a.down, Duration: a.over.Sub(a.began),
	}
	if m.port == n.tracker.port {
		e.Outcome = Cut
	} else {
		e.Duration -= idle.of(f.Proto, a)
	}
	if e.Began.IsZero() { // it began before times were noted
		e.Began, e.Duration = time.Now(), 0
	}
	e.Duration = max(e.Duration, 0)
	return e, true
}

// timeouts are for how long the tracker remembers flows after their last packet.
type timeouts struct {
	tcp                  [10]time.Duration // by state
	udp, udpStream, icmp time.Duration
}

// tcpStates names the states of TCP as settings do, from the first that has one.
var tcpStates = []string{1: "syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack", "time_wait", "close", "syn_sent"}

func readTimeouts() (t timeouts, err error) {
	read := func(name string) (d time.Duration) {
		text, e := readSysctl("netfilter/nf_conntrack_" + name)
		if e == nil {
			_, e = fmt.Sscan(text, &d)
		}
		if e != nil && err == nil {
			err = fmt.Errorf("read net/netfilter/nf_conntrack_%s: %w", name, e)
		}
		return d * time.Second
	}
	for state, name := range tcpStates {
		if name != "" {
			t.tcp[state] = read("tcp_timeout_" + name)
		}
	}
	t.udp, t.udpStream, t.icmp = read("udp_timeout"), read("udp_timeout_stream"), read("icmp_timeout")
	return t, err
}

// of returns how long a flow had been quiet when it was forgotten.
func (t timeouts) of(p policy.Proto, a account) time.Duration {
	switch {
	case p == policy.TCP && int(a.state) < len(t.tcp):
		return t.tcp[a.state]
	case p == policy.UDP && a.assured:
		return t.udpStream
	case p == policy.UDP:
		return t.udp
	case p == policy.ICMP:
		return t.icmp
	}
	return 0
}
