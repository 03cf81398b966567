package app

import (
	"context"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/egress/kernel"
	"github.com/moat-sandbox/moat/internal/policy"
)

// Every flow that the kernel tells of becomes a record that says why.
func TestDirectRecords(t *testing.T) {
	never, err := policy.NewNever(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.Parse(policy.Document{AllowOut: []string{"1.1.1.1", "example.com"}, DenyOut: []string{"9.9.9.9"}}, policy.Options{Never: never})
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort
	for name, test := range map[string]struct {
		event  kernel.Event
		ended  bool // the sandbox, by now
		want   audit.Record
		reason string
	}{
		"allowed": {
			event: kernel.Event{Proto: policy.TCP, Dst: at("1.1.1.1:22"), Outcome: kernel.Ended, BytesUp: 10, BytesDown: 20, Duration: time.Second},
			want: audit.Record{
				Protocol: audit.TCP, Verdict: policy.Allow, Rule: "allowOut", Entry: "1.1.1.1", BytesUp: 10, BytesDown: 20, Duration: time.Second,
			},
			reason: "1.1.1.1 is in allowOut entry 1.1.1.1",
		},
		"allowed, ended with the policy": {
			event:  kernel.Event{Proto: policy.UDP, Dst: at("9.9.9.9:53"), Outcome: kernel.Ended},
			want:   audit.Record{Protocol: audit.UDP, Verdict: policy.Allow, Rule: ruleEnded},
			reason: "allowed when it began",
		},
		"allowed, of a sandbox that has ended": {
			event:  kernel.Event{Proto: policy.TCP, Dst: at("1.1.1.1:22"), Outcome: kernel.Ended},
			ended:  true,
			want:   audit.Record{Protocol: audit.TCP, Verdict: policy.Allow, Rule: ruleEnded},
			reason: "allowed when it began",
		},
		"refused": {
			event:  kernel.Event{Proto: policy.UDP, Dst: at("9.9.9.9:53")},
			want:   audit.Record{Protocol: audit.UDP, Rule: "denyOut", Entry: "9.9.9.9"},
			reason: "9.9.9.9 is in denyOut entry 9.9.9.9",
		},
		"refused by name": {
			event:  kernel.Event{Proto: policy.TCP, Dst: at("198.19.0.7:22")},
			want:   audit.Record{Protocol: audit.TCP, Rule: "name", Name: "git.example.org"},
			reason: "git.example.org cannot be reached by name on tcp port 22",
		},
		"refused protocol": {
			event:  kernel.Event{Proto: 47, Dst: at("1.1.1.1:0")},
			want:   audit.Record{Protocol: "ip-47", Rule: "protocol"},
			reason: "cannot leave a sandbox",
		},
		"another sandbox": {
			event:  kernel.Event{Proto: policy.ICMP, Dst: at("198.18.0.9:0"), Outcome: kernel.RefusedSandbox},
			want:   audit.Record{Protocol: audit.ICMP, Rule: "never"},
			reason: "they do not reach each other",
		},
		"the node, by an address that the table lacks": {
			event:  kernel.Event{Proto: policy.TCP, Dst: at("1.1.1.1:22"), Outcome: kernel.RefusedNode},
			want:   audit.Record{Protocol: audit.TCP, Rule: "never"},
			reason: "machine that runs the sandbox",
		},
		"one flow too many": {
			event:  kernel.Event{Proto: policy.TCP, Dst: at("1.1.1.1:22"), Outcome: kernel.RefusedLimit},
			want:   audit.Record{Protocol: audit.TCP, Rule: ruleLimit},
			reason: "more than 8192 flows",
		},
		"older than the policy": {
			event:  kernel.Event{Proto: policy.TCP, Dst: at("1.1.1.1:443")},
			want:   audit.Record{Protocol: audit.TCP, Rule: ruleEnded},
			reason: "older than the policy",
		},
		"cut by an update": {
			event:  kernel.Event{Proto: policy.TCP, Dst: at("9.9.9.9:443"), Outcome: kernel.Cut, BytesUp: 1},
			want:   audit.Record{Protocol: audit.TCP, Rule: "denyOut", Entry: "9.9.9.9", BytesUp: 1},
			reason: "cut by an update of the policy: 9.9.9.9 is in denyOut",
		},
		"cut by the end of the sandbox": {
			event:  kernel.Event{Proto: policy.TCP, Dst: at("1.1.1.1:443"), Outcome: kernel.Cut},
			ended:  true,
			want:   audit.Record{Protocol: audit.TCP, Rule: ruleEnded},
			reason: "the sandbox has ended",
		},
	} {
		t.Run(name, func(t *testing.T) {
			log, err := audit.New(audit.Config{})
			if err != nil {
				t.Fatal(err)
			}
			var tenants egress.Registry
			src := netip.MustParseAddr("198.18.0.3")
			tenants.Put(src, netip.Addr{}, egress.Tenant{Sandbox: "s", Policy: p, Generation: 3})
			if test.ended {
				tenants.Remove(src, netip.Addr{}, "s")
			}
			d := &direct{log: log, tenants: &tenants, meant: func(sandbox string, a netip.Addr) (string, bool) {
				return "git.example.org", sandbox == "s" && policy.Synthetic().Contains(a)
			}}
			test.event.Src, test.event.Began = src, time.Unix(1, 0)
			d.record(test.event)
			d.record(kernel.Event{Src: netip.MustParseAddr("198.18.0.5")}) // of a slot without a sandbox

			got := log.Query(audit.Filter{Everyone: true}).Records
			if len(got) != 1 {
				t.Fatalf("%d records, want 1", len(got))
			}
			r := got[0]
			if !strings.Contains(r.Reason, test.reason) {
				t.Errorf("the reason is %q, want one with %q", r.Reason, test.reason)
			}
			want := test.want
			want.Time, want.Sandbox, want.Dst, want.Generation = test.event.Began, "s", test.event.Dst, 3
			r.ID, r.Cursor, r.Reason = 0, 0, ""
			if !reflect.DeepEqual(r, want) {
				t.Errorf("the record is %+v, want %+v", r, want)
			}
		})
	}
}

// script is a kernel that can be heard only now and then: each Watch tells the
// next line's events and fails, and the one after the last goes on.
type script [][]kernel.Event

func (s *script) Watch(ctx context.Context, tell func(kernel.Event)) error {
	if len(*s) == 0 {
		<-ctx.Done()
		return nil
	}
	for _, e := range (*s)[0] {
		tell(e)
	}
	*s = (*s)[1:]
	return unix.ENOBUFS
}

func (s *script) Lost() uint64 { return 0 }

// A kernel that cannot be heard is listened to again, and the log says once that
// flows are missing.
func TestDirectSurvivesTheKernel(t *testing.T) {
	log, err := audit.New(audit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var tenants egress.Registry
	src := netip.MustParseAddr("198.18.0.3")
	tenants.Put(src, netip.Addr{}, egress.Tenant{Sandbox: "s"})
	e := []kernel.Event{{Src: src, Dst: netip.MustParseAddrPort("1.1.1.1:22"), Outcome: kernel.Ended}}
	d := &direct{
		log: log, tenants: &tenants, meant: func(string, netip.Addr) (string, bool) { return "", false },
		logger: slog.New(slog.DiscardHandler), patience: time.Nanosecond,
	}
	ctx, cancel := context.WithCancel(t.Context())
	d.stop = cancel
	d.watching.Go(func() error {
		d.watch(ctx, &script{nil, nil, e, nil, e})
		return nil
	})
	defer d.close()

	f := log.Follow(audit.Filter{Everyone: true})
	defer f.Close()
	want := []string{ruleLost, ruleEnded, ruleLost, ruleEnded, ruleLost}
	var got []string
	for len(got) < len(want) {
		page, err := f.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Records {
			got = append(got, r.Rule)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the rules of the records are %v, want %v", got, want)
	}
}
