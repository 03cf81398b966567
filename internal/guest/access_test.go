package guest

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/moat-sandbox/moat/api"
	pb "github.com/moat-sandbox/moat/api/process"
	"github.com/moat-sandbox/moat/internal/guest/session"
)

const refused = `{"code":401,"message":"unauthorized access, please provide a valid access token or method signing if supported"}`

func TestTokenGuardsEverythingElse(t *testing.T) {
	d := ready(t, api.GuestInit{AccessToken: "right"})
	for _, token := range []string{"", "wrong", "righ", "rightt", strings.Repeat("x", 10000)} {
		h := map[string]string{session.TokenHeader: token}
		for _, path := range []string{
			"GET /metrics", "GET /envs", "POST /process.Process/List", "POST /filesystem.Filesystem/Stat",
			"GET /", "PUT /files", "HEAD /files", "GET /init", "POST /health", "GET //health", "GET /health/", "POST /files/compose", "OPTIONS /envs",
		} {
			method, path, _ := strings.Cut(path, " ")
			res := d.do(method, path, nil, h)
			if body := read(t, res); res.StatusCode != 401 || method != "HEAD" && body != refused {
				t.Errorf("%s %s with token %.10q: %d %s", method, path, token, res.StatusCode, body)
			}
		}
		if res := d.do("GET", "/health", nil, h); res.StatusCode != 204 || res.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("health with token %.10q: %d %v", token, res.StatusCode, res.Header)
		}
	}
	h := map[string]string{session.TokenHeader: "right"}
	d.expect(d.do("GET", "/envs", nil, h), 200, `{"E2B_SANDBOX":"true"}`)
	d.expect(d.do("POST", "/files/compose", nil, h), 404, `{"code":404,"message":"POST /files/compose is unknown here"}`)
	d.token = "wrong"
	_, err := d.process(nil).List(t.Context(), &pb.ListRequest{})
	wantCode(t, err, connect.CodeUnauthenticated, "")
}

func TestBeforeInitNothingIsServed(t *testing.T) {
	d := start(t)
	for _, path := range []string{"GET /metrics", "GET /envs", "POST /process.Process/List", "GET /files?path=/etc/passwd", "POST /files?path=/tmp/x"} {
		method, path, _ := strings.Cut(path, " ")
		if res := d.do(method, path, nil, nil); res.StatusCode != 503 {
			t.Errorf("%s %s: %d %s", method, path, res.StatusCode, read(t, res))
		}
	}
	if res := d.do("GET", "/health", nil, nil); res.StatusCode != 204 {
		t.Errorf("health: %d", res.StatusCode)
	}
}

func TestWithoutATokenEverythingIsOpen(t *testing.T) {
	d := ready(t, api.GuestInit{})
	for _, token := range []string{"", "any"} {
		if res := d.do("GET", "/envs", nil, map[string]string{session.TokenHeader: token}); res.StatusCode != 200 {
			t.Errorf("token %q: %d", token, res.StatusCode)
		}
	}
}

func signature(path, operation, user, token, expiration string) string {
	parts := path + ":" + operation + ":" + user + ":" + token
	if expiration != "" {
		parts += ":" + expiration
	}
	sum := sha256.Sum256([]byte(parts))
	return "v1_" + strings.TrimRight(base64.StdEncoding.EncodeToString(sum[:]), "=")
}

func TestSignedURLs(t *testing.T) {
	dir := openDir(t, 0, 0)
	path := dir + "/f"
	d := ready(t, api.GuestInit{AccessToken: "tok"})
	if err := os.WriteFile(path, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	soon, past := fmt.Sprint(time.Now().Unix()+60), fmt.Sprint(time.Now().Unix()-60)
	type params = []string
	for name, c := range map[string]struct {
		params params
		header string
		status int
		body   string
	}{
		"header":         {params{"path", path}, "tok", 200, "content"},
		"signed":         {params{"path", path, "signature", signature(path, "read", "", "tok", "")}, "", 200, "content"},
		"with user":      {params{"path", path, "username", "root", "signature", signature(path, "read", "root", "tok", "")}, "", 200, "content"},
		"in time":        {params{"path", path, "signature_expiration", soon, "signature", signature(path, "read", "", "tok", soon)}, "", 200, "content"},
		"expired":        {params{"path", path, "signature_expiration", past, "signature", signature(path, "read", "", "tok", past)}, "", 401, "signature is already expired"},
		"none":           {params{"path", path}, "", 401, "missing signature query parameter"},
		"empty":          {params{"path", path, "signature", ""}, "", 401, "invalid signature"},
		"other path":     {params{"path", "/etc/shadow", "signature", signature(path, "read", "", "tok", "")}, "", 401, "invalid signature"},
		"other use":      {params{"path", path, "signature", signature(path, "write", "", "tok", "")}, "", 401, "invalid signature"},
		"other user":     {params{"path", path, "username", "root", "signature", signature(path, "read", "daemon", "tok", "")}, "", 401, "invalid signature"},
		"other token":    {params{"path", path, "signature", signature(path, "read", "", "other", "")}, "", 401, "invalid signature"},
		"prolonged":      {params{"path", path, "signature_expiration", soon, "signature", signature(path, "read", "", "tok", past)}, "", 401, "invalid signature"},
		"made eternal":   {params{"path", path, "signature", signature(path, "read", "", "tok", past)}, "", 401, "invalid signature"},
		"no time at all": {params{"path", path, "signature_expiration", "never", "signature", signature(path, "read", "", "tok", "never")}, "", 401, "invalid signature"},
		"wrong header":   {params{"path", path, "signature", signature(path, "read", "", "tok", "")}, "bad", 401, "access token present in header but does not match"},
	} {
		want := c.body
		if c.status != 200 {
			want = fmt.Sprintf(`{"code":401,"message":"%s"}`, c.body)
		}
		res := d.do("GET", filesURL(c.params...), nil, map[string]string{session.TokenHeader: c.header})
		if got := read(t, res); res.StatusCode != c.status || got != want {
			t.Errorf("%s: %d %s, want %d %s", name, res.StatusCode, got, c.status, want)
		}
	}
	body, kind := form(t, "file", [2]string{path, "new"})
	res := d.do("POST", filesURL("signature", signature("", "write", "", "tok", "")), body, map[string]string{"Content-Type": kind})
	d.expect(res, 200, fmt.Sprintf(`[{"name":"f","path":"%s","type":"file"}]`, path))
}

func TestOtherOriginsMayCall(t *testing.T) {
	d := ready(t, api.GuestInit{AccessToken: "tok"})
	origin := map[string]string{"Origin": "https://app.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-access-token, connect-protocol-version"}
	res := d.do("OPTIONS", "/process.Process/Start", nil, origin)
	if res.StatusCode != 204 || res.Header.Get("Access-Control-Allow-Origin") != "*" ||
		!strings.Contains(res.Header.Get("Access-Control-Allow-Methods"), "POST") ||
		res.Header.Get("Access-Control-Allow-Headers") != origin["Access-Control-Request-Headers"] {
		t.Errorf("preflight: %d %v", res.StatusCode, res.Header)
	}
	res = d.do("GET", "/envs", nil, map[string]string{"Origin": "https://app.example"})
	if res.StatusCode != 401 || res.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("call: %d %v", res.StatusCode, res.Header)
	}
}

func TestHTTP2WithoutTLS(t *testing.T) {
	d := ready(t, api.GuestInit{AccessToken: "tok"})
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: withHeaders{map[string]string{session.TokenHeader: "tok"}, &http.Transport{Protocols: &protocols}}}
	res, err := client.Get(d.url + "/envs")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.ProtoMajor != 2 || res.StatusCode != 200 {
		t.Errorf("%s %d", res.Proto, res.StatusCode)
	}
	c := pb.NewProcessClient(client, d.url, connect.WithGRPC())
	if o := run(t, c, shell("echo over gRPC; exit 2")); o.stdout != "over gRPC\n" || o.end.GetExitCode() != 2 {
		t.Errorf("outcome = %+v", o)
	}
}

// The start event must not wait for output: SDKs return when they have it.
func TestFirstEventIsFlushedAtOnce(t *testing.T) {
	d := ready(t, api.GuestInit{})
	conn := d.rawConn()
	message := `{"process":{"cmd":"/bin/sleep","args":["60"]}}`
	body := "\x00\x00\x00\x00" + string(rune(len(message))) + message
	fmt.Fprintf(conn, "POST /process.Process/Start HTTP/1.1\r\nHost: x\r\nContent-Type: application/connect+json\r\n"+
		"Connect-Content-Encoding: identity\r\nConnect-Protocol-Version: 1\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil) // its body ends with the connection
	if err != nil {
		t.Fatal(err)
	}
	if kind := res.Header.Get("Content-Type"); res.StatusCode != 200 || kind != "application/connect+json" {
		t.Fatalf("%d %s", res.StatusCode, kind)
	}
	frame := make([]byte, 200)
	n, err := res.Body.Read(frame)
	if err != nil || n < 5 {
		t.Fatalf("read %d bytes, %v", n, err)
	}
	var event struct {
		Event struct{ Start struct{ Pid int } }
	}
	if err := json.Unmarshal(frame[5:n], &event); err != nil || event.Event.Start.Pid == 0 || frame[0] != 0 {
		t.Errorf("first frame = %q, %v", frame[:n], err)
	}
}

// Nothing that may be secret is ever logged.
func TestNoSecretIsLogged(t *testing.T) {
	dir := openDir(t, 0, 0)
	d := ready(t, api.GuestInit{AccessToken: "secret-token", EnvVars: map[string]string{"A": "secret-default"}})
	c := d.process(nil)
	req := &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "cat", Args: []string{"-", "secret-argument"}, Envs: map[string]string{"B": "secret-env"}}}
	stream, pid := begin(t, t.Context(), c, req)
	in := &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte("secret-stdin")}}
	if _, err := c.SendInput(t.Context(), &pb.SendInputRequest{Process: byPID(pid), Input: in}); err != nil {
		t.Fatal(err)
	}
	kill(t, c, pid)
	for stream.Receive() {
	}
	d.do("POST", filesURL("path", dir+"/f", "signature", "secret-signature"), strings.NewReader("secret-body"), map[string]string{
		"Content-Type": "application/octet-stream", session.TokenHeader: "secret-wrong-token"})
	d.do("POST", "/init", strings.NewReader(`{"accessToken":"secret-token","envVars":{"C":"secret-init"},"hostname":5}`), nil)
	d.init(api.GuestInit{AccessToken: "secret-token", EnvVars: map[string]string{"bad=name": "secret-value"}}, "")
	d.do("GET", "/metrics", nil, map[string]string{session.TokenHeader: "secret-other"})
	if log := d.log.String(); strings.Contains(log, "secret") || !strings.Contains(log, "process started") {
		t.Errorf("the log is:\n%s", log)
	}
}
