package control

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

var epoch = time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)

// put stores sandboxes i0, i1, … of team A, started a second apart unless the
// edit says otherwise.
func (r *rig) put(n int, edit func(i int, s *store.Sandbox)) {
	r.t.Helper()
	for i := range n {
		s := store.Sandbox{
			ID: fmt.Sprintf("i%d", i), Team: "team-a", TemplateID: "t1", State: sandbox.Running,
			StartedAt: epoch.Add(time.Duration(i) * time.Second), EndAt: epoch.Add(time.Hour),
		}
		if edit != nil {
			edit(i, &s)
		}
		if err := r.store.CreateSandbox(r.t.Context(), s); err != nil {
			r.t.Fatal(err)
		}
	}
}

// list asks for sandboxes and returns their ids.
func (r *rig) list(path string, query url.Values) (ids []string, header http.Header) {
	r.t.Helper()
	got := r.send(keyA, "GET", path+"?"+query.Encode(), "").want(http.StatusOK)
	for _, s := range decodeAs[[]api.ListedSandbox](got) {
		ids = append(ids, s.SandboxID)
	}
	return ids, got.header
}

func TestListShape(t *testing.T) {
	r := newRig(t)
	r.put(1, func(_ int, s *store.Sandbox) {
		s.Alias, s.Metadata, s.Limits = "base", map[string]string{"a": "b"}, sandbox.Limits{CPUs: 2, MemoryMB: 512, DiskMB: 1024}
	})
	want := fmt.Sprintf(`[{"sandboxID":"i0","templateID":"t1","alias":"base","clientID":"6532622b","envdVersion":%q,"state":"running",`+
		`"startedAt":"2026-11-21T10:00:00Z","endAt":"2026-11-21T11:00:00Z","cpuCount":2,"memoryMB":512,"diskSizeMB":1024,"metadata":{"a":"b"}}]`, api.GuestVersion)
	for _, path := range []string{"/sandboxes", "/v2/sandboxes"} {
		if got := r.send(keyA, "GET", path, "").want(http.StatusOK).body; got != want {
			t.Errorf("%s: got  %s\nwant %s", path, got, want)
		}
	}
}

func TestListV1(t *testing.T) {
	r := newRig(t)
	r.put(250, func(i int, s *store.Sandbox) {
		if i%2 == 1 {
			s.Metadata = map[string]string{"odd": "yes"}
		}
	})
	ids, header := r.list("/sandboxes", nil)
	if len(ids) != 250 || ids[0] != "i249" || ids[249] != "i0" {
		t.Errorf("%d sandboxes from %v, want all 250, newest first", len(ids), ids[:1])
	}
	if header.Get(api.HeaderNextToken) != "" {
		t.Error("v1 has pages")
	}
	if ids, _ := r.list("/sandboxes", url.Values{"metadata": {"odd=yes"}}); len(ids) != 125 {
		t.Errorf("%d odd ones, want 125", len(ids))
	}
}

func TestListFilters(t *testing.T) {
	r := newRig(t)
	r.put(4, func(i int, s *store.Sandbox) {
		switch i {
		case 0:
			s.Metadata = map[string]string{"k 1": "v&2", "a": "b"}
		case 1:
			s.Metadata = map[string]string{"a": "b"}
			s.TemplateID = "gone"
			s.Alias = "was"
		case 2:
			s.Metadata = map[string]string{"a": "other", "plus+": "100%=ä"}
			s.Alias = "code-interpreter-v1"
		}
	})
	for name, test := range map[string]struct {
		query string // as it is on the wire
		want  string
	}{
		"none":                     {"", "i3 i2 i1 i0"},
		"empty values":             {"metadata=&state=&order=&template=&limit=&nextToken=&startedAfter=", "i3 i2 i1 i0"},
		"unknown parameter":        {"someday=1", "i3 i2 i1 i0"},
		"ascending":                {"order=asc", "i0 i1 i2 i3"},
		"descending":               {"order=desc", "i3 i2 i1 i0"},
		"running":                  {"state=running", "i3 i2 i1 i0"},
		"paused":                   {"state=paused", ""},
		"both states":              {"state=running%2Cpaused", "i3 i2 i1 i0"},
		"both, plain comma":        {"state=paused,running", "i3 i2 i1 i0"},
		"metadata":                 {"metadata=a%3Db", "i1 i0"},
		"metadata, SDK's observed": {"metadata=k%2525201%3Dv%2525262", "i0"},
		"metadata, all must hold":  {"metadata=a%3Db%26k%2525201%3Dv%2525262", "i0"},
		"metadata, contradiction":  {"metadata=a%3Db%26a%3Dother", ""},
		"metadata, wrong value":    {"metadata=a%3Dc", ""},
		"metadata, unknown key":    {"metadata=z%3D", ""},
		"template id":              {"template=t1", "i3 i2 i0"},
		"template name":            {"template=base", "i3 i2 i0"},
		"template's other name":    {"template=code-interpreter-v1", "i3 i2 i0"},
		"removed template":         {"template=gone", "i1"},
		"removed template's name":  {"template=was", "i1"},
		"unknown template":         {"template=nope", ""},
		"started after":            {"startedAfter=2026-11-21T10:00:02Z", "i3 i2"},
		"started after, zone":      {"startedAfter=2026-11-21T11:00:02%2B01:00", "i3 i2"},
		"started after, millis":    {"startedAfter=2026-11-21T10:00:01.001Z", "i3 i2"},
		"several":                  {"metadata=a%3Db&template=base&order=asc&state=running", "i0"},
	} {
		got := r.send(keyA, "GET", "/v2/sandboxes?"+test.query, "").want(http.StatusOK)
		var ids []string
		for _, s := range decodeAs[[]api.ListedSandbox](got) {
			ids = append(ids, s.SandboxID)
		}
		if strings.Join(ids, " ") != test.want {
			t.Errorf("%s: got %v, want %s", name, ids, test.want)
		}
	}
}

// TestStartedAfterAcceptsWhatWasShown: clients send back a start that they
// read, and mean that sandbox too.
func TestStartedAfterAcceptsWhatWasShown(t *testing.T) {
	r := newRig(t)
	r.put(1, func(_ int, s *store.Sandbox) { s.StartedAt = epoch.Add(123456789) })
	shown := decodeAs[[]api.ListedSandbox](r.send(keyA, "GET", "/v2/sandboxes", ""))[0].StartedAt
	for later, want := range map[time.Duration]int{0: 1, 999: 1, 1000: 0} {
		at := shown.Add(later).Format(time.RFC3339Nano)
		if ids, _ := r.list("/v2/sandboxes", url.Values{"startedAfter": {at}}); len(ids) != want {
			t.Errorf("startedAfter=%s lists %d sandboxes, want %d", at, len(ids), want)
		}
	}
}

func TestListRefusals(t *testing.T) {
	r := newRig(t)
	for query, text := range map[string]string{
		"limit=0":                 `limit must be a number from 1 to 100, got "0"`,
		"limit=101":               "limit",
		"limit=-1":                "limit",
		"limit=ten":               "limit",
		"limit=1&limit=2":         "limit was given 2 times",
		"state=stopped":           `state must be running or paused, got "stopped"`,
		"state=running,":          `got ""`,
		"order=up":                `order must be asc or desc, got "up"`,
		"startedAfter=yesterday":  "startedAfter must be an RFC 3339 time",
		"startedAfter=1700000000": "startedAfter",
		"template=base:latest":    "without a tag",
		"nextToken=nonsense":      "Invalid next token",
		"nextToken=%00":           "Invalid next token",
		"metadata=%25":            "Invalid metadata filter",
		"metadata=a%3D%2525":      "Invalid metadata filter",
		"metadata=a%3Bb":          "Invalid metadata filter",
		"metadata=%":              "Invalid query string",
		"a=1;b=2":                 "Invalid query string",
	} {
		r.send(keyA, "GET", "/v2/sandboxes?"+query, "").want(http.StatusBadRequest, text)
	}
	r.send(keyA, "GET", "/sandboxes?metadata=%25", "").want(http.StatusBadRequest, "Invalid metadata filter")
}

func TestPaging(t *testing.T) {
	r := newRig(t)
	// Three at a time start in the same microsecond: the id must decide.
	r.put(25, func(i int, s *store.Sandbox) {
		s.StartedAt = epoch.Add(time.Duration(i/3)*time.Microsecond + time.Duration(i%3)*time.Nanosecond)
	})
	var all []string
	for i := range 25 {
		all = append(all, fmt.Sprintf("i%d", i))
	}
	for _, order := range []string{"asc", "desc"} {
		for _, limit := range []string{"1", "7", "24", "25", "100"} {
			query := url.Values{"order": {order}, "limit": {limit}}
			var seen []string
			for {
				ids, header := r.list("/v2/sandboxes", query)
				seen = append(seen, ids...)
				if total := header.Get(api.HeaderTotalRunning); total != "25" {
					t.Errorf("limit %s: total %q, want 25", limit, total)
				}
				token := header.Get(api.HeaderNextToken)
				if token == "" || len(seen) > 25 {
					break
				}
				query.Set("nextToken", token)
			}
			if sorted := slices.Sorted(slices.Values(seen)); !slices.Equal(sorted, slices.Sorted(slices.Values(all))) {
				t.Errorf("%s by %s: got %v", order, limit, seen)
			}
			first := map[string]string{"asc": "i0", "desc": "i24"}[order]
			if seen[0] != first {
				t.Errorf("%s by %s: begins with %s, want %s", order, limit, seen[0], first)
			}
		}
	}
}

// TestPagingSurvivesKills: a token stays good when its sandbox is gone.
func TestPagingSurvivesKills(t *testing.T) {
	r := newRig(t)
	r.put(5, nil)
	ids, header := r.list("/v2/sandboxes", url.Values{"limit": {"2"}})
	for _, id := range ids {
		r.send(keyA, "DELETE", "/sandboxes/"+id, "").want(http.StatusNoContent)
	}
	rest, _ := r.list("/v2/sandboxes", url.Values{"nextToken": {header.Get(api.HeaderNextToken)}})
	if want := []string{"i2", "i1", "i0"}; !slices.Equal(rest, want) {
		t.Errorf("got %v, want %v", rest, want)
	}
}

func TestTotalRunning(t *testing.T) {
	r := newRig(t)
	r.put(5, func(i int, s *store.Sandbox) {
		if i == 0 {
			s.Metadata = map[string]string{"a": "b"}
		}
	})
	for query, want := range map[string]string{
		"limit=2": "5", "metadata=a%3Db": "1", "state=running": "5", "state=paused": "", "startedAfter=2027-01-01T00:00:00Z": "0",
	} {
		got := r.send(keyA, "GET", "/v2/sandboxes?"+query, "").want(http.StatusOK)
		if total := got.header.Get(api.HeaderTotalRunning); total != want {
			t.Errorf("%s: total %q, want %q", query, total, want)
		}
	}
}

// asE2B encodes a metadata filter as E2B's SDKs do.
func asE2B(metadata map[string]string) string {
	form := url.Values{}
	for k, v := range metadata {
		form.Set(strings.ReplaceAll(url.QueryEscape(k), "+", "%20"), strings.ReplaceAll(url.QueryEscape(v), "+", "%20"))
	}
	return form.Encode()
}

func TestMetadataEncodings(t *testing.T) {
	for _, metadata := range []map[string]string{
		{"k": "v"}, {"k 1": "v&2"}, {"a+b": "c+d"}, {"100%": "=&;#?/\\\""}, {"ключ": "значение ✓"}, {"": ""}, {"a": "", "b": "x"}, {"%20": "%2520"},
	} {
		pairs, err := parseMetadata(asE2B(metadata))
		if err != nil {
			t.Errorf("%v: %v", metadata, err)
			continue
		}
		if len(pairs) != len(metadata) || !matches(metadata, pairs) {
			t.Errorf("%v: got %v", metadata, pairs)
		}
	}
}
