package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/test/harness"
)

// expectRefusal checks the form that all refusals of the API have.
func expectRefusal(t *testing.T, what string, a harness.Answer, status int, words ...string) {
	t.Helper()
	var body struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal([]byte(a.Body), &body); err != nil || body.Code != a.Status || body.Message == "" {
		t.Errorf("%s: %d %q is not an error of the API's form", what, a.Status, a.Body)
	}
	if a.Status != status {
		t.Errorf("%s: status %d, want %d: %s", what, a.Status, status, a.Body)
	}
	for _, word := range words {
		if !strings.Contains(body.Message, word) {
			t.Errorf("%s: %q does not name %q", what, body.Message, word)
		}
	}
}

func TestBadInputIsRefusedInWords(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := s.Create(t, api.NewSandbox{})
	const missing = "i00000000000000000000"
	for _, c := range []struct {
		method, path, body string
		status             int
		words              []string
	}{
		// Bodies that are no JSON, or not the JSON that was asked for.
		{"POST", "/sandboxes", ``, 400, nil},
		{"POST", "/sandboxes", `{`, 400, nil},
		{"POST", "/sandboxes", `null`, 400, nil},
		{"POST", "/sandboxes", `[]`, 400, nil},
		{"POST", "/sandboxes", `"base"`, 400, nil},
		{"POST", "/sandboxes", "{\"templateID\":\"b\xff\"}", 400, nil},
		{"POST", "/sandboxes", `{"templateID":"base"}{}`, 400, nil},
		{"POST", "/sandboxes", `{"templateID":"base","templateID":"other"}`, 400, []string{"templateID"}},
		{"POST", "/v2/sandboxes", `{"templateID":7}`, 400, []string{"templateID"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","timeout":"soon"}`, 400, []string{"timeout"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","timeout":1.5}`, 400, []string{"timeout"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","metadata":{"a":1}}`, 400, []string{"metadata"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","envVars":[]}`, 400, []string{"envVars"}},
		{"POST", "/v2/sandboxes", strings.Repeat(`{"network":`, 20_000), 400, nil},

		// Values that make no sense.
		{"POST", "/v2/sandboxes", `{}`, 400, []string{"templateID"}},
		{"POST", "/v2/sandboxes", `{"templateID":"no such template!"}`, 400, nil},
		{"POST", "/v2/sandboxes", `{"templateID":"nothing"}`, 404, []string{"nothing"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","timeout":0}`, 400, []string{"imeout"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","timeout":-1}`, 400, []string{"imeout"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","timeout":9000000000000000000}`, 400, []string{"imeout"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","network":{"denyOut":["10.0.0.0/33"]}}`, 400, []string{"10.0.0.0/33"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","network":{"denyOut":["1.2.3"]}}`, 400, []string{"1.2.3"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","network":{"denyOut":["example.com"]}}`, 400, []string{"example.com"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","network":{"allowOut":["010.1.1.1"]}}`, 400, []string{"010.1.1.1"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","network":{"allowOut":["fe80::1%eth0"]}}`, 400, []string{"fe80::1%eth0"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","network":{"allowOut":[""]}}`, 400, nil},
		{"POST", "/v2/sandboxes", `{"templateID":"base","network":{"allowOut":["example.com"]}}`, 400, []string{"you must include 'ALL_TRAFFIC' in deny out to block all other traffic."}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","network":{"allowOut":["example.com:443"],"denyOut":["0.0.0.0/0"]}}`, 400, []string{"example.com:443"}},
		{"POST", "/sandboxes", `{"templateID":"base","secure":false,"network":{"allowPublicTraffic":false}}`, 400, []string{"without public access"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","network":{"maskRequestHost":"http://localhost"}}`, 400, []string{"mask request host is not valid"}},
		{"POST", "/sandboxes", `{"templateID":"base","secure":false,"network":{"allowPublicTraffic":false}}`, 400, []string{"secure"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","network":{"rules":{"example.com":[{"transform":{"headers":{"Host":"y"}}}]}}}`, 400, []string{"example.com", "Host"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","network":{"rules":{"*":[{"transform":{"headers":{"X":"y"}}}]}}}`, 400, []string{"Rule domain", "*"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","network":{"rules":{"example.com":[{"transform":{"headers":{"X":"${e2b.secrets.NONE}"}}}]}}}`, 400, []string{"network.rules", "none"}},
		{"POST", "/v2/sandboxes", `{"templateID":"base","network":{"rules":{"example.com":[{"transform":{"headers":{"X":"${e2b.identity.tokens.a}"}}}]}}}`, 400, []string{"identity"}},

		// Sandboxes that do not exist, or cannot.
		{"GET", "/sandboxes/" + missing, ``, 404, []string{missing}},
		{"DELETE", "/sandboxes/" + missing, ``, 404, []string{missing}},
		{"GET", "/sandboxes/..%2f..%2fetc", ``, 404, nil},
		{"GET", "/sandboxes/I-UPPER-CASE", ``, 400, nil},
		{"PUT", "/sandboxes/" + missing + "/network", `{}`, 404, []string{missing}},

		// Calls on one that does.
		{"POST", "/sandboxes/" + box.ID + "/timeout", `{}`, 400, []string{"timeout"}},
		{"POST", "/sandboxes/" + box.ID + "/timeout", `{"timeout":-1}`, 400, []string{"imeout"}},
		{"POST", "/sandboxes/" + box.ID + "/refreshes", `{"duration":99999}`, 400, []string{"duration"}},
		{"POST", "/v2/sandboxes/" + box.ID + "/connect", `{"timeout":"x"}`, 400, []string{"timeout"}},
		{"POST", "/sandboxes/" + box.ID + "/pause", `{}`, 501, nil},
		{"POST", "/sandboxes/" + box.ID + "/snapshots", `{}`, 501, nil},
		{"POST", "/sandboxes/" + box.ID + "/fork", `{}`, 501, nil},

		// Lists.
		{"GET", "/v2/sandboxes?limit=0", ``, 400, []string{"limit"}},
		{"GET", "/v2/sandboxes?limit=101", ``, 400, []string{"limit"}},
		{"GET", "/v2/sandboxes?limit=many", ``, 400, []string{"limit"}},
		{"GET", "/v2/sandboxes?nextToken=%21", ``, 400, []string{"next token"}},
		{"GET", "/v2/sandboxes?state=asleep", ``, 400, []string{"asleep"}},

		// Routes.
		{"GET", "/no/such/route", ``, 404, nil},
		{"PATCH", "/sandboxes/" + box.ID, ``, 405, nil},
	} {
		body := c.body
		if len(body) > 80 {
			body = body[:80] + "…"
		}
		expectRefusal(t, fmt.Sprintf("%s %s %s", c.method, c.path, body), s.Request(t, c.method, c.path, c.body), c.status, c.words...)
	}
	expectAlive(t, s, box)
}

func TestHugeBodiesAreRefused(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := s.Create(t, api.NewSandbox{})
	for what, unit := range map[string]string{"one endless string": "a", "endless white space": " "} {
		body := io.MultiReader(strings.NewReader(`{"templateID":"`), io.LimitReader(repeat(unit), 64<<20), strings.NewReader(`"}`))
		a, err := s.TryRequest(t.Context(), s.Key, "POST", "/v2/sandboxes", body)
		if err != nil {
			continue // cut off, which is as good
		}
		if a.Status != 413 && a.Status != 400 {
			t.Errorf("%s: %d %s, want 413 or 400", what, a.Status, a.Body)
		}
	}
	long := strings.Repeat("x", 1<<20)
	a := s.Request(t, "POST", "/v2/sandboxes", `{"templateID":"`+long+`"}`)
	if a.Status/100 != 4 || len(a.Body) > 4096 {
		t.Errorf("a name of 1 MiB: %d with %d bytes, want 4xx and few", a.Status, len(a.Body))
	}
	expectAlive(t, s, box)
}

// repeat reads as the unit without end.
type repeat string

func (r repeat) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = r[i%len(r)]
	}
	return len(p), nil
}

// expectAlive expects old and new sandboxes to work.
func expectAlive(t *testing.T, s *harness.Server, box *harness.Box) {
	t.Helper()
	if got := box.MustRun(t, "echo alive"); got != "alive" {
		t.Errorf("the sandbox says %q", got)
	}
	fresh := s.Create(t, api.NewSandbox{})
	if got := fresh.MustRun(t, "echo alive"); got != "alive" {
		t.Errorf("a new sandbox says %q", got)
	}
}

func TestFullMachineSaysSo(t *testing.T) {
	s := harness.Start(t, harness.Options{Args: []string{"--team-limit", "2", "--max-sandboxes", "3", "--pool", "1"}})
	first := s.Create(t, api.NewSandbox{})
	s.Create(t, api.NewSandbox{})
	expectRefusal(t, "a third of two", s.Request(t, "POST", "/v2/sandboxes", `{"templateID":"base"}`), 429, "maximum number of concurrent")
	other, err := s.Operator().CreateKey(t.Context(), api.NewKey{})
	if err != nil {
		t.Fatal(err)
	}
	create := func() harness.Answer {
		return s.RequestAs(t, other.Secret, "POST", "/v2/sandboxes", strings.NewReader(`{"templateID":"base"}`))
	}
	if a := create(); a.Status != 201 {
		t.Errorf("another team's first: %d %s", a.Status, a.Body)
	}
	if a := create(); a.Status != 503 && a.Status != 429 {
		t.Errorf("a fourth of three: %d %s, want 503", a.Status, a.Body)
	}
	if err := s.Client().Kill(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	if a := create(); a.Status != 201 {
		t.Errorf("after one was killed: %d %s", a.Status, a.Body)
	}
}

func TestVanishedTemplate(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := s.Create(t, api.NewSandbox{})
	root := filepath.Join(t.TempDir(), "root")
	copyPrograms(t, root)
	_, err := s.Operator().AddTemplate(t.Context(), api.NewTemplate{Names: []string{"mine"}, Dir: root})
	if err != nil {
		t.Fatal(err)
	}
	mine := s.Create(t, api.NewSandbox{TemplateID: "mine"})
	if r := runSh(t, mine, "echo $((6*7))"); r != "42\n" {
		t.Errorf("in the template: %q", r)
	}
	removed := 0
	err = filepath.WalkDir(filepath.Join(s.DataDir, "templates"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && filepath.Ext(path) == ".erofs" {
			removed++
			return os.Remove(path)
		}
		return err
	})
	if err != nil || removed == 0 {
		t.Fatalf("removed %d images of templates, %v", removed, err)
	}
	a := s.Request(t, "POST", "/v2/sandboxes", `{"templateID":"mine"}`)
	if a.Status < 400 {
		t.Errorf("create from a vanished template: %d %s", a.Status, a.Body)
	}
	expectRefusal(t, "create from a vanished template", a, a.Status, "template")
	if r := runSh(t, mine, "echo still here"); r != "still here\n" {
		t.Errorf("the running sandbox: %q", r)
	}
	expectAlive(t, s, box)
}

// TestFullDisk gives the server a data directory on a file system that gets
// full. The directory is seen on the node only.
func TestFullDisk(t *testing.T) {
	s := harness.New(t, harness.Options{DataDir: "/run/small/data", Args: []string{"--team-limit", "250"}})
	onNode := func(script string) {
		t.Helper()
		if out, err := s.Lab.Node.Command(t.Context(), "sh", "-c", script).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", script, err, out)
		}
	}
	onNode("mkdir /run/small && mount -t tmpfs -o size=512m small /run/small")
	s.Start()
	box := s.Create(t, api.NewSandbox{})
	onNode("dd if=/dev/zero of=/run/small/filler bs=64k 2>/dev/null; df /run/small | grep -q 100%")
	// The store has a little in reserve; large records use it up.
	large := `{"templateID":"base","metadata":{"large":"` + strings.Repeat("x", 60_000) + `"}}`
	var refused harness.Answer
	s.Wait("a create is refused", func() bool {
		refused = s.Request(t, "POST", "/v2/sandboxes", large)
		return refused.Status != 201
	})
	expectRefusal(t, "create on a full disk", refused, 507, "disk is full")
	if got := box.MustRun(t, "echo alive"); got != "alive" {
		t.Errorf("the sandbox says %q", got)
	}
	onNode("rm /run/small/filler")
	s.Wait("a create succeeds again", func() bool {
		return s.Request(t, "POST", "/v2/sandboxes", `{"templateID":"base"}`).Status == 201
	})
}

func TestServerRefusesToStart(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := s.Create(t, api.NewSandbox{})
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"port already taken", []string{"--data-dir", t.TempDir()}, "address already in use"},
		{"data directory in use", []string{"--http", "127.0.0.1:8080", "--https", "", "--tls-cert", "", "--tls-key", ""}, s.DataDir},
		{"unknown flag", []string{"--no-such-flag"}, "no-such-flag"},
		{"bad address", []string{"--http", "nowhere"}, "nowhere"},
		{"bad range", []string{"--allow-range", "10.0.0.0/40"}, "10.0.0.0/40"},
		{"loopback exempted", []string{"--data-dir", t.TempDir(), "--http", "127.0.0.1:8080", "--https", "127.0.0.1:8443", "--allow-range", "127.0.0.0/8"}, "127.0.0.0/8"},
		{"missing certificate", []string{"--tls-cert", "/no/such/cert.pem"}, "/no/such/cert.pem"},
		{"missing CA", []string{"--extra-ca", "/no/such/ca.pem"}, "/no/such/ca.pem"},
		{"unwritable data directory", []string{"--data-dir", "/proc/moat"}, "/proc/moat"},
	} {
		status, out := s.Second(c.args...)
		if status == 0 || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit status %d, want another and %q in\n%s", c.name, status, c.want, out)
		}
		if strings.Contains(out, "goroutine ") || strings.Contains(out, "panic:") {
			t.Errorf("%s: a crash\n%s", c.name, out)
		}
	}
	expectAlive(t, s, box)
}

func TestTimeoutsReap(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	c := s.Client()
	gone := func(id string) func() bool {
		return func() bool {
			_, err := c.Sandbox(t.Context(), id)
			return harness.Status(err) == 404
		}
	}
	short := s.Create(t, api.NewSandbox{Timeout: harness.Seconds(2 * time.Second)})
	long := s.Create(t, api.NewSandbox{Timeout: harness.Seconds(10 * time.Second)})
	if err := c.SetTimeout(t.Context(), long.ID, time.Hour); err != nil {
		t.Fatal(err)
	}
	cut := s.Create(t, api.NewSandbox{})
	if err := c.SetTimeout(t.Context(), cut.ID, 0); err != nil {
		t.Fatal(err)
	}
	s.Wait("the cut sandbox is gone", gone(cut.ID))
	s.Wait("the short sandbox is gone", gone(short.ID))
	before, err := c.Sandbox(t.Context(), long.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Connect(t.Context(), long.ID, time.Minute); err != nil {
		t.Fatal(err)
	}
	after, err := c.Sandbox(t.Context(), long.ID)
	if err != nil || !after.EndAt.Equal(before.EndAt) {
		t.Errorf("connecting changed the end from %s to %s, %v; it only ever extends", before.EndAt, after.EndAt, err)
	}
	if _, err := c.Open(short.Made).Commands.Run(t.Context(), client.Command{Args: []string{"true"}}); harness.Status(err) != 502 {
		t.Errorf("a command in a reaped sandbox: %v, want 502", err)
	}
}
