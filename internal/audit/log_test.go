package audit_test

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

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/policy"
)

func newLog(t testing.TB, cfg audit.Config) *audit.Log {
	t.Helper()
	l, err := audit.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// add appends records of a sandbox, each with a reason of its own.
func add(l *audit.Log, sandbox string, reasons ...string) {
	for _, reason := range reasons {
		l.Append(audit.Record{Sandbox: sandbox, Reason: reason})
	}
}

func reasons(p audit.Page) string {
	var all []string
	for _, r := range p.Records {
		all = append(all, r.Reason)
	}
	return strings.Join(all, " ")
}

func wantReasons(t *testing.T, p audit.Page, want string) {
	t.Helper()
	if got := reasons(p); got != want {
		t.Errorf("got records %q, want %q", got, want)
	}
}

func TestSandboxesAreApart(t *testing.T) {
	l := newLog(t, audit.Config{})
	add(l, "a", "a1")
	add(l, "b", "b1")
	add(l, "a", "a2")
	add(l, "", "stranger")
	wantReasons(t, l.Query(audit.Filter{Sandbox: "a"}), "a1 a2")
	wantReasons(t, l.Query(audit.Filter{Sandbox: "b"}), "b1")
	wantReasons(t, l.Query(audit.Filter{Sandbox: "c"}), "")
	wantReasons(t, l.Query(audit.Filter{Everyone: true}), "a1 b1 a2 stranger")
	wantReasons(t, l.Query(audit.Filter{}), "") // nothing named, nothing shown
}

func TestCursorsGrow(t *testing.T) {
	before := uint64(time.Now().UnixMicro())
	l := newLog(t, audit.Config{})
	add(l, "a", "1", "2")
	add(l, "b", "3")
	last := before
	for _, r := range l.Query(audit.Filter{Everyone: true}).Records {
		if r.Cursor <= last {
			t.Errorf("cursor %d of record %s does not come after %d", r.Cursor, r.Reason, last)
		}
		last = r.Cursor
	}
	// A server that starts later goes on where this one was.
	time.Sleep(time.Millisecond)
	later := newLog(t, audit.Config{})
	add(later, "a", "4")
	if c := later.Query(audit.Filter{Sandbox: "a"}).Records[0].Cursor; c <= last {
		t.Errorf("after a restart cursors begin at %d, before it they were at %d", c, last)
	}
}

func TestQueryContinues(t *testing.T) {
	l := newLog(t, audit.Config{})
	add(l, "a", "1", "2", "3", "4", "5")
	f := audit.Filter{Sandbox: "a", Limit: 2}
	for _, want := range []string{"1 2", "3 4", "5", ""} {
		page := l.Query(f)
		wantReasons(t, page, want)
		f.Since = page.Next
	}
	add(l, "a", "6")
	wantReasons(t, l.Query(f), "6")
	latest := l.Query(audit.Filter{Sandbox: "a", Limit: 2, Latest: true})
	wantReasons(t, latest, "5 6")
	if latest.Next != f.Since+1 {
		t.Errorf("after the latest records one continues at %d, want %d", latest.Next, f.Since+1)
	}
}

func TestFilter(t *testing.T) {
	l := newLog(t, audit.Config{})
	allow, deny := policy.Allow, policy.Deny
	out, in := audit.Out, audit.In
	for _, r := range []audit.Record{
		{Reason: "1", Name: "example.com", Verdict: allow, Protocol: audit.TLS},
		{Reason: "2", Name: "api.example.com", Verdict: deny, Protocol: audit.TLS},
		{Reason: "3", Name: "badexample.com", Verdict: deny, Protocol: audit.HTTP},
		{Reason: "4", Verdict: deny, Protocol: audit.TCP, Dst: netip.MustParseAddrPort("8.8.8.8:53"), Direction: audit.In, Time: time.Unix(100, 0)},
	} {
		r.Sandbox = "a"
		l.Append(r)
	}
	for _, x := range []struct {
		filter audit.Filter
		want   string
	}{
		{audit.Filter{}, "1 2 3 4"},
		{audit.Filter{Verdict: &allow}, "1"},
		{audit.Filter{Verdict: &deny}, "2 3 4"},
		{audit.Filter{Verdict: &deny, Limit: 1}, "2"},
		{audit.Filter{Verdict: &deny, Limit: 1, Latest: true}, "4"},
		{audit.Filter{Protocol: audit.TLS}, "1 2"},
		{audit.Filter{Name: "example.com"}, "1"},
		{audit.Filter{Name: "*.example.com"}, "2"},
		{audit.Filter{Name: "*"}, "1 2 3"},
		{audit.Filter{Name: "*.com", Verdict: &deny}, "2 3"},
		{audit.Filter{Direction: &out}, "1 2 3"},
		{audit.Filter{Direction: &in}, "4"},
		{audit.Filter{Address: netip.MustParsePrefix("8.8.0.0/16")}, "4"},
		{audit.Filter{Address: netip.MustParsePrefix("8.9.0.0/16")}, ""},
		{audit.Filter{From: time.Unix(100, 0)}, "4"},
		{audit.Filter{From: time.Unix(100, 1)}, ""},
	} {
		x.filter.Sandbox = "a"
		wantReasons(t, l.Query(x.filter), x.want)
	}
}

func TestOldRecordsMakeRoom(t *testing.T) {
	l := newLog(t, audit.Config{PerSandbox: 3, Total: 4})
	add(l, "b", "b1")
	add(l, "a", "1", "2", "3", "4", "5")
	page := l.Query(audit.Filter{Sandbox: "a"})
	wantReasons(t, page, "3 4 5")
	if page.Lost != 2 {
		t.Errorf("%d records lost, want 2", page.Lost)
	}
	first := page.Records[0].Cursor
	for since, want := range map[uint64]uint64{first - 2: 1, first - 1: 0, first: 0, page.Next: 0} {
		if got := l.Query(audit.Filter{Sandbox: "a", Since: since}).Lost; got != want {
			t.Errorf("%d records lost since %d, want %d; the first one there is %d", got, since, want, first)
		}
	}
	wantReasons(t, l.Query(audit.Filter{Everyone: true}), "2 3 4 5")
	wantReasons(t, l.Query(audit.Filter{Sandbox: "b"}), "b1") // a neighbour's noise does not reach it
}

func TestEndedSandboxStaysReadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, audit.Config{Retain: time.Minute})
		add(l, "a", "1", "2")
		w := l.Follow(audit.Filter{Sandbox: "a", Limit: 1})
		defer w.Close()
		other := l.Follow(audit.Filter{Sandbox: "b"})
		defer other.Close()
		if team, known := l.Team("a"); known {
			t.Errorf("a sandbox that lives is said to have been of %q", team)
		}
		l.Retire("a", "red")
		l.Retire("a", "blue")                     // a removal that is tried again
		for _, want := range []string{"1", "2"} { // who follows gets all there is
			page, err := w.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			wantReasons(t, page, want)
		}
		late := l.Follow(audit.Filter{Sandbox: "a", Since: l.Query(audit.Filter{Sandbox: "a"}).Next})
		defer late.Close()
		for _, f := range []*audit.Follower{w, late} {
			if _, err := f.Next(t.Context()); !errors.Is(err, audit.ErrEnded) {
				t.Errorf("who follows a sandbox that has ended gets %v", err)
			}
		}
		over, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := other.Next(over); !errors.Is(err, context.Canceled) {
			t.Errorf("who follows another sandbox gets %v", err)
		}
		time.Sleep(time.Minute)
		add(l, "a", "3") // a flow whose end came later
		if team, known := l.Team("a"); team != "red" || !known {
			t.Errorf("it was of %q, %v", team, known)
		}
		wantReasons(t, l.Query(audit.Filter{Sandbox: "a"}), "1 2 3")
		time.Sleep(time.Nanosecond)
		if team, known := l.Team("a"); known {
			t.Errorf("after a minute it is still known to be of %q", team)
		}
		wantReasons(t, l.Query(audit.Filter{Sandbox: "a"}), "")
		wantReasons(t, l.Query(audit.Filter{Everyone: true}), "1 2 3")
	})
}

// However many sandboxes end, what is kept of them is bounded.
func TestEndedSandboxesAreBounded(t *testing.T) {
	l := newLog(t, audit.Config{Total: 10})
	for i := range 100 {
		sandbox := fmt.Sprint("s", i)
		add(l, sandbox, "1", "2")
		l.Retire(sandbox, "red")
	}
	for i, want := range map[int]string{99: "1 2", 97: "1 2", 96: "", 0: ""} {
		wantReasons(t, l.Query(audit.Filter{Sandbox: fmt.Sprint("s", i)}), want)
		if _, known := l.Team(fmt.Sprint("s", i)); known != (want != "") {
			t.Errorf("sandbox %d is known: %v", i, known)
		}
	}
}

// Records for sandboxes that nobody retires cannot fill the memory, and who
// misses some is told.
func TestSandboxesAreBounded(t *testing.T) {
	l := newLog(t, audit.Config{PerSandbox: 1, Total: 1})
	add(l, "first", "1")
	seen := l.Query(audit.Filter{Sandbox: "first"}).Next
	for i := range 20_000 {
		add(l, fmt.Sprint("s", i), "x")
	}
	wantReasons(t, l.Query(audit.Filter{Sandbox: "first"}), "")
	wantReasons(t, l.Query(audit.Filter{Sandbox: "s19999"}), "x")
	add(l, "first", "2")
	page := l.Query(audit.Filter{Sandbox: "first", Since: seen})
	wantReasons(t, page, "2")
	if page.Lost == 0 {
		t.Error("nobody says that records are gone")
	}
}

// A cursor from before a restart goes on, and tells that something may have
// been missed.
func TestRestartIsNotSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, audit.Config{})
		add(l, "a", "1")
		seen := l.Query(audit.Filter{Sandbox: "a"}).Next
		time.Sleep(time.Second)
		l = newLog(t, audit.Config{})
		add(l, "a", "2")
		w := l.Follow(audit.Filter{Sandbox: "a", Since: seen})
		defer w.Close()
		page, err := w.Next(t.Context())
		if err != nil || page.Lost == 0 {
			t.Errorf("%d lost, %v", page.Lost, err)
		}
		wantReasons(t, page, "2")
		if page := l.Query(audit.Filter{Sandbox: "a", Since: page.Next}); page.Lost != 0 {
			t.Errorf("%d lost for who was there", page.Lost)
		}
	})
}

func TestFollowWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, audit.Config{})
		deny := policy.Deny
		w := l.Follow(audit.Filter{Sandbox: "a", Verdict: &deny})
		defer w.Close()
		got := make(chan string)
		go func() {
			defer close(got)
			for {
				page, err := w.Next(t.Context())
				if err != nil {
					return
				}
				got <- reasons(page)
			}
		}()
		defer func() { l.Retire("a", "red"); <-got }()
		for _, append := range []func(){
			func() { add(l, "b", "other") },
			func() { l.Append(audit.Record{Sandbox: "a", Verdict: policy.Allow, Reason: "allowed"}) },
		} {
			append()
			synctest.Wait()
			select {
			case page := <-got:
				t.Errorf("got %q, which was not wanted", page)
			default:
			}
		}
		for _, want := range []string{"1", "2"} {
			add(l, "a", want)
			if page := <-got; page != want {
				t.Errorf("got %q, want %q", page, want)
			}
		}
	})
}

func TestSlowFollowerLosesAndKnows(t *testing.T) {
	l := newLog(t, audit.Config{PerSandbox: 4})
	add(l, "a", "1", "2")
	w := l.Follow(audit.Filter{Sandbox: "a", Limit: 2})
	defer w.Close()
	for _, step := range []struct {
		add  []string
		want string
		lost uint64
	}{
		{nil, "1 2", 0},
		{[]string{"3", "4", "5", "6", "7", "8", "9"}, "6 7", 3},
		{nil, "8 9", 0},
		{[]string{"10"}, "10", 0},
	} {
		add(l, "a", step.add...)
		page, err := w.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantReasons(t, page, step.want)
		if page.Lost != step.lost {
			t.Errorf("%d records lost before %q, want %d", page.Lost, step.want, step.lost)
		}
	}
}

// Whoever reads with many writers at work gets every record once and in order.
func TestFollowAmongWriters(t *testing.T) {
	const writers, each = 4, 500
	l := newLog(t, audit.Config{PerSandbox: writers * each, Total: writers * each})
	var readers, writing sync.WaitGroup
	for _, f := range []audit.Filter{{Everyone: true}, {Sandbox: "s1"}} {
		readers.Go(func() {
			w := l.Follow(f)
			defer w.Close()
			want := each
			if f.Everyone {
				want *= writers
			}
			var last uint64
			for n := 0; n < want; {
				page, err := w.Next(t.Context())
				if err != nil || page.Lost != 0 {
					t.Errorf("follow: %v, %d lost", err, page.Lost)
					return
				}
				for _, r := range page.Records {
					if r.Cursor <= last {
						t.Errorf("record %d after record %d", r.Cursor, last)
					}
					last = r.Cursor
				}
				n += len(page.Records)
			}
		})
	}
	for i := range writers {
		writing.Go(func() {
			for range each {
				add(l, fmt.Sprintf("s%d", i), "x")
				l.Query(audit.Filter{Everyone: true, Latest: true, Limit: 1})
			}
		})
	}
	writing.Wait()
	readers.Wait()
}

func TestRecordsAreBounded(t *testing.T) {
	l := newLog(t, audit.Config{})
	huge := strings.Repeat("x", 1<<16)
	l.Append(audit.Record{
		Sandbox: "a", Name: huge, Reason: huge, Entry: huge, Method: huge,
		Path: "/" + huge + "?token=secret",
	})
	l.Append(audit.Record{Sandbox: "a", Path: "/a?token=secret", Method: "G\xff\xfeT"})
	records := l.Query(audit.Filter{Sandbox: "a"}).Records
	r := records[0]
	if n := len(r.Name) + len(r.Reason) + len(r.Entry) + len(r.Method) + len(r.Path); n > 4096 {
		t.Errorf("a record of %d bytes was kept", n)
	}
	if !strings.HasSuffix(r.Path, "x...") {
		t.Errorf("the path that was cut ends in %q", r.Path[len(r.Path)-10:])
	}
	if r := records[1]; r.Path != "/a" || r.Method != "G\uFFFDT" {
		t.Errorf("path %q, method %q", r.Path, r.Method)
	}
}

func TestIDs(t *testing.T) {
	l := newLog(t, audit.Config{})
	l.Append(audit.Record{Sandbox: "a", ID: 7})
	l.Append(audit.Record{Sandbox: "a"})
	records := l.Query(audit.Filter{Sandbox: "a"}).Records
	if records[0].ID != 7 || records[1].ID == 0 {
		t.Errorf("ids %d and %d", records[0].ID, records[1].ID)
	}
	if s := audit.ID(7).String(); s != "aaaaaaaaaaaao" {
		t.Errorf("id 7 is written %q", s)
	}
	seen := make([]audit.ID, 0, 1000)
	for range cap(seen) {
		if id := audit.NewID(); slices.Contains(seen, id) {
			t.Errorf("id %v came twice", id)
		} else {
			seen = append(seen, id)
		}
	}
}

func TestNewRefusesNonsense(t *testing.T) {
	for _, cfg := range []audit.Config{{PerSandbox: -1}, {Total: -1}} {
		if l, err := audit.New(cfg); err == nil || l != nil {
			t.Errorf("%+v gives %v, %v", cfg, l, err)
		}
	}
}

func sample(sandbox string) audit.Record {
	return audit.Record{
		ID: audit.NewID(), Time: time.Now(), Sandbox: sandbox, Protocol: audit.TLS,
		Dst: netip.MustParseAddrPort("93.184.216.34:443"), Name: "api.example.com",
		Verdict: policy.Allow, Rule: "allowOut", Entry: "*.example.com",
		Reason: "api.example.com matches allowOut entry *.example.com", Generation: 3,
		BytesUp: 517, BytesDown: 4096, Duration: 12345 * time.Microsecond,
	}
}

func BenchmarkAppend(b *testing.B) {
	l := newLog(b, audit.Config{})
	r := sample("a")
	b.ReportAllocs()
	for b.Loop() {
		l.Append(r)
	}
}

func BenchmarkAppendParallel(b *testing.B) {
	l := newLog(b, audit.Config{})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		r := sample("a")
		for pb.Next() {
			l.Append(r)
		}
	})
}

// BenchmarkAppendWithFile appends faster than any disk writes; what the queue
// cannot hold is dropped.
func BenchmarkAppendWithFile(b *testing.B) {
	f, stop := openFile(b, audit.FileConfig{Path: b.TempDir() + "/audit.jsonl"})
	defer stop()
	l := newLog(b, audit.Config{File: f})
	r := sample("a")
	b.ReportAllocs()
	for b.Loop() {
		l.Append(r)
	}
	b.ReportMetric(float64(f.Dropped())/float64(b.N), "dropped/op")
}

func BenchmarkQueryLatest(b *testing.B) {
	l := newLog(b, audit.Config{})
	for range audit.DefaultTotal {
		l.Append(sample("a"))
	}
	for _, f := range []audit.Filter{{Sandbox: "a", Latest: true}, {Everyone: true, Latest: true}} {
		b.Run(fmt.Sprintf("everyone=%v", f.Everyone), func(b *testing.B) {
			for b.Loop() {
				l.Query(f)
			}
		})
	}
}
