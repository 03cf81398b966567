package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/egress"
)

const (
	serverA = "192.0.2.1:53"
	serverB = "192.0.2.2:53"
)

// resolve fails the test if there is no answer.
func resolve(t *testing.T, r *Resolver, name string, qtype uint16) *Answer {
	t.Helper()
	answer, err := r.Resolve(t.Context(), parseName(name), qtype)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestAnswersAreCachedForTheirTimeToLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstreams{answer: func(_, _ string, q *wire.Msg) *wire.Msg {
			return reply(q, "www.example.com. 100 IN CNAME example.com.", "example.com. 60 IN A 93.184.216.34")
		}}
		r := u.newResolver(t, serverA)
		resolve(t, r, "WWW.Example.com.", wire.TypeA)
		time.Sleep(59 * time.Second)
		answer := resolve(t, r, "www.example.com", wire.TypeA)
		var ttls []uint32
		for _, rr := range answer.aged(answer.Records, time.Now()) {
			ttls = append(ttls, rr.Header().Ttl)
		}
		if want := []uint32{41, 1}; !slices.Equal(ttls, want) {
			t.Errorf("after 59 s the records live for %v s, want %v", ttls, want)
		}
		if asked := u.queries(); len(asked) != 1 {
			t.Errorf("the server was asked %q, want one query", asked)
		}
		time.Sleep(time.Second)
		resolve(t, r, "www.example.com", wire.TypeA)
		if asked := u.queries(); len(asked) != 1 {
			t.Errorf("after the time to live the server was asked %q, want one query", asked)
		}
	})
}

func TestWhatMayNotBeCached(t *testing.T) {
	negative := func(soa string) func(_, _ string, q *wire.Msg) *wire.Msg {
		return func(_, _ string, q *wire.Msg) *wire.Msg {
			m := reply(q)
			m.Rcode = wire.RcodeNameError
			if soa != "" {
				m.Ns = parseRecords(soa)
			}
			return m
		}
	}
	for _, test := range []struct {
		name   string
		answer func(_, _ string, q *wire.Msg) *wire.Msg
		cached time.Duration
	}{
		{"time to live 0", func(_, _ string, q *wire.Msg) *wire.Msg { return reply(q, "example.com. 0 IN A 1.1.1.1") }, 0},
		{"highest bit set", func(_, _ string, q *wire.Msg) *wire.Msg { return reply(q, "example.com. 2147483648 IN A 1.1.1.1") }, 0},
		{"a year", func(_, _ string, q *wire.Msg) *wire.Msg { return reply(q, "example.com. 31536000 IN A 1.1.1.1") }, maxTTL},
		{"no such name", negative("com. 900 IN SOA a. b. 1 2 3 4 300"), 300 * time.Second},
		{"no such name, says nobody", negative(""), unsaidTTL},
		{"no such name, says another zone", negative("org. 900 IN SOA a. b. 1 2 3 4 300"), unsaidTTL},
		{"no such name, for ever", negative("com. 31536000 IN SOA a. b. 1 2 3 4 31536000"), maxNegativeTTL},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := &upstreams{answer: test.answer}
				r := u.newResolver(t, serverA)
				resolve(t, r, "example.com", wire.TypeA)
				if test.cached > 0 {
					time.Sleep(test.cached - time.Millisecond)
					resolve(t, r, "example.com", wire.TypeA)
					if asked := u.queries(); len(asked) != 1 {
						t.Errorf("the server was asked %q, want one query", asked)
					}
					time.Sleep(time.Millisecond)
				}
				u.queries()
				resolve(t, r, "example.com", wire.TypeA)
				if asked := u.queries(); len(asked) != 1 {
					t.Errorf("the answer was used after %v", test.cached)
				}
			})
		})
	}
}

func TestOneQuestionIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstreams{answer: func(_, _ string, q *wire.Msg) *wire.Msg {
			time.Sleep(100 * time.Millisecond)
			return reply(q, "example.com. 0 IN A 93.184.216.34")
		}}
		r := u.newResolver(t, serverA)
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() { resolve(t, r, "example.com", wire.TypeA) })
		}
		all.Wait()
		if asked := u.queries(); len(asked) != 1 {
			t.Errorf("the server was asked %q, want one query", asked)
		}
	})
}

// Who gives up must not take the answer away from the others.
func TestCancelledCallerLeavesTheFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstreams{answer: func(_, _ string, q *wire.Msg) *wire.Msg {
			time.Sleep(100 * time.Millisecond)
			return reply(q, "example.com. 60 IN A 93.184.216.34")
		}}
		r := u.newResolver(t, serverA)
		impatient, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := r.Resolve(impatient, parseName("example.com"), wire.TypeA); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the impatient caller got %v", err)
		}
		if got := resolve(t, r, "example.com", wire.TypeA).addrs(); len(got) != 1 {
			t.Errorf("the patient caller got %v", got)
		}
		if asked := u.queries(); len(asked) != 1 {
			t.Errorf("the server was asked %q, want one query", asked)
		}
	})
}

func TestSilentServerIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstreams{answer: func(server, _ string, q *wire.Msg) *wire.Msg {
			if server == serverA {
				return nil
			}
			return reply(q, "example.com. 0 IN A 93.184.216.34")
		}}
		r := u.newResolver(t, serverA, serverB)
		for i, want := range []time.Duration{tryTimeout, 0} {
			began := time.Now()
			resolve(t, r, "example.com", wire.TypeA)
			if took := time.Since(began); took != want {
				t.Errorf("lookup %d took %v, want %v", i+1, took, want)
			}
		}
	})
}

func TestFailingServerIsReplaced(t *testing.T) {
	for name, broken := range map[string]func(q *wire.Msg) *wire.Msg{
		"failure": func(q *wire.Msg) *wire.Msg { return new(wire.Msg).SetRcode(q, wire.RcodeServerFailure) },
		"refused, without the question": func(q *wire.Msg) *wire.Msg {
			m := new(wire.Msg).SetRcode(q, wire.RcodeRefused)
			m.Question = nil
			return m
		},
		"truncated over TCP as well": func(q *wire.Msg) *wire.Msg {
			m := new(wire.Msg).SetReply(q)
			m.Truncated = true
			return m
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := &upstreams{answer: func(server, _ string, q *wire.Msg) *wire.Msg {
					if server == serverA {
						return broken(q)
					}
					return reply(q, "example.com. 60 IN A 93.184.216.34")
				}}
				r := u.newResolver(t, serverA, serverB)
				if got := resolve(t, r, "example.com", wire.TypeA).addrs(); len(got) != 1 {
					t.Errorf("got %v", got)
				}
			})
		})
	}
}

func TestAllServersSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstreams{answer: func(_, _ string, _ *wire.Msg) *wire.Msg { return nil }}
		r := u.newResolver(t, serverA, serverB)
		began := time.Now()
		_, _, err := r.Lookup(t.Context(), "example.com")
		if !errors.Is(err, egress.ErrNoAnswer) {
			t.Errorf("got %v, want that nobody answers", err)
		}
		if took := time.Since(began); took != lookupTimeout {
			t.Errorf("took %v, want %v", took, lookupTimeout)
		}
	})
}

func TestTruncatedAnswersAreAskedForOverTCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstreams{answer: func(_, network string, q *wire.Msg) *wire.Msg {
			var records []string
			for i := range 200 {
				records = append(records, fmt.Sprintf("example.com. 60 IN A 93.184.216.%d", i))
			}
			m := reply(q, records...)
			if network == "udp" {
				m.Truncate(int(q.IsEdns0().UDPSize()))
			}
			return m
		}}
		r := u.newResolver(t, serverA)
		if got := resolve(t, r, "example.com", wire.TypeA).addrs(); len(got) != 200 {
			t.Errorf("got %d addresses, want 200", len(got))
		}
		if asked := u.queries(); len(asked) != 2 || !strings.HasPrefix(asked[1], "tcp") {
			t.Errorf("the server was asked %q", asked)
		}
	})
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstreams{answer: func(_, _ string, _ *wire.Msg) *wire.Msg { return nil }}
		r := u.newResolver(t, serverA)
		ended := make(chan error)
		go func() {
			_, err := r.Resolve(context.WithoutCancel(t.Context()), parseName("example.com"), wire.TypeA)
			ended <- err
		}()
		synctest.Wait()
		began := time.Now()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err == nil || time.Since(began) != 0 {
			t.Errorf("the lookup ended with %v after %v", err, time.Since(began))
		}
		if _, err := r.Resolve(t.Context(), parseName("example.com"), wire.TypeA); !errors.Is(err, errClosed) {
			t.Errorf("a closed resolver answers %v", err)
		}
	})
}

func TestFlightsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &upstreams{answer: func(_, _ string, _ *wire.Msg) *wire.Msg { return nil }}
		r := u.newResolver(t, serverA)
		for i := range maxFlights {
			r.start(question{parseName(fmt.Sprintf("host%d.example.com", i)), wire.TypeA})
		}
		if _, err := r.Resolve(t.Context(), parseName("example.com"), wire.TypeA); !errors.Is(err, errBusy) {
			t.Errorf("got %v, want that there are too many", err)
		}
	})
}

func TestLookup(t *testing.T) {
	const v4, v6 = "example.com. 60 IN A 93.184.216.34", "example.com. 30 IN AAAA 2606:2800:220:1::34"
	code := func(rcode int) func(q *wire.Msg) *wire.Msg {
		return func(q *wire.Msg) *wire.Msg { return new(wire.Msg).SetRcode(q, rcode) }
	}
	with := func(records ...string) func(q *wire.Msg) *wire.Msg {
		return func(q *wire.Msg) *wire.Msg { return reply(q, records...) }
	}
	silent := func(*wire.Msg) *wire.Msg { return nil }
	late := func(d time.Duration, record string) func(q *wire.Msg) *wire.Msg {
		return func(q *wire.Msg) *wire.Msg {
			time.Sleep(d)
			return reply(q, record)
		}
	}
	for _, test := range []struct {
		name    string
		a, aaaa func(q *wire.Msg) *wire.Msg
		want    string
		ttl     time.Duration
		took    time.Duration
		err     error
	}{
		{name: "both", a: with(v4), aaaa: with(v6), want: "2606:2800:220:1::34 93.184.216.34", ttl: 30 * time.Second},
		{name: "only IPv4", a: with(v4), aaaa: with(), want: "93.184.216.34", ttl: time.Minute},
		{name: "IPv6 is late", a: with(v4), aaaa: late(40*time.Millisecond, v6), want: "2606:2800:220:1::34 93.184.216.34", ttl: 30 * time.Second, took: 40 * time.Millisecond},
		{name: "IPv6 is never answered", a: with(v4), aaaa: silent, want: "93.184.216.34", ttl: time.Minute - secondFamilyDelay, took: secondFamilyDelay},
		{name: "IPv6 fails", a: with(v4), aaaa: code(wire.RcodeServerFailure), want: "93.184.216.34", ttl: time.Minute},
		{name: "no such name", a: code(wire.RcodeNameError), aaaa: code(wire.RcodeNameError), err: egress.ErrNoSuchName},
		{name: "no address", a: with(), aaaa: with(), err: egress.ErrNoAddress},
		{name: "one has none, one fails", a: with(), aaaa: code(wire.RcodeServerFailure), err: egress.ErrNoAnswer},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := &upstreams{answer: func(_, _ string, q *wire.Msg) *wire.Msg {
					if q.Question[0].Qtype == wire.TypeA {
						return test.a(q)
					}
					return test.aaaa(q)
				}}
				r := u.newResolver(t, serverA)
				began := time.Now()
				addrs, ttl, err := r.Lookup(t.Context(), "example.com")
				took := time.Since(began)
				slices.SortFunc(addrs, func(a, b netip.Addr) int { return b.Compare(a) })
				if got := strings.Trim(fmt.Sprint(addrs), "[]"); got != test.want || !errors.Is(err, test.err) || err != nil && test.err == nil {
					t.Errorf("got %q, %v, want %q, %v", got, err, test.want, test.err)
				}
				if took != test.took || err == nil && ttl.Round(time.Second) != test.ttl.Round(time.Second) {
					t.Errorf("took %v, valid for %v, want %v, %v", took, ttl, test.took, test.ttl)
				}
			})
		})
	}
}

func TestCacheIsBounded(t *testing.T) {
	now := time.Now()
	c := newCache(10 * (entryOverhead + 100))
	answer := func(i int) *Answer {
		return &Answer{
			Records:  parseRecords(fmt.Sprintf("host%d.example.com. 60 IN A 1.1.1.1", i)),
			received: now, ttl: time.Minute,
		}
	}
	key := func(i int) question { return question{parseName(fmt.Sprintf("host%d.example.com", i)), wire.TypeA} }
	for i := range 1000 {
		c.put(key(i), answer(i), now)
		c.get(key(0), now) // keeps the first one in use
		if c.size > c.limit {
			t.Fatalf("%d bytes after %d entries, at most %d are allowed", c.size, i+1, c.limit)
		}
	}
	if len(c.entries) != c.recent.Len() || len(c.entries) < 5 {
		t.Errorf("%d entries in the index, %d in the list", len(c.entries), c.recent.Len())
	}
	if c.get(key(0), now) == nil || c.get(key(999), now) == nil || c.get(key(500), now) != nil {
		t.Error("what was used last is gone, or what was not is there")
	}
	if c.get(key(999), now.Add(time.Minute)) != nil || c.entries[key(999)] != nil {
		t.Error("a stale answer is served or kept")
	}
}

func TestNewResolverRefuses(t *testing.T) {
	never := builtinNever(t)
	for name, cfg := range map[string]ResolverConfig{
		"no table":        {Upstreams: []netip.AddrPort{netip.MustParseAddrPort(serverA)}},
		"invalid server":  {Never: never, Upstreams: []netip.AddrPort{{}}},
		"port 0":          {Never: never, Upstreams: []netip.AddrPort{netip.MustParseAddrPort("1.1.1.1:0")}},
		"negative cache":  {Never: never, Upstreams: []netip.AddrPort{netip.MustParseAddrPort(serverA)}, CacheBytes: -1},
		"no such file":    {Never: never, ResolvConf: "/nonexistent/resolv.conf"},
		"file of nothing": {Never: never, ResolvConf: "/dev/null"},
	} {
		if r, err := NewResolver(cfg); err == nil || r != nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
