package e2e

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// private is a network document for create whose sandbox demands a token.
func private() *api.Network { return &api.Network{AllowPublicTraffic: new(bool)} }

// visit asks a public URL with some headers and returns status and body.
func visit(t *testing.T, s *harness.Server, url string, header map[string]string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	resp, err := s.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

const tokenHeader = "E2b-Traffic-Access-Token"

// TestPrivateSandbox follows a token from create to the sandbox's end.
func TestPrivateSandbox(t *testing.T) {
	s := harness.Start(t, harness.Options{Args: []string{"--log-level", "debug"}})
	box := withProber(t, s, api.NewSandbox{Network: private(), Timeout: harness.Seconds(10 * time.Minute)})
	if box.Made.TrafficAccessToken == nil || len(*box.Made.TrafficAccessToken) != 64 {
		t.Fatalf("made %+v", box.Made)
	}
	first := *box.Made.TrafficAccessToken
	box.Start(t, prober+" serve 8080")
	byHost := publicURL(box, "https", 8080, "/x")
	expectToken := func(token, dead string) {
		t.Helper()
		wrong := strings.Repeat("0", 64)
		for _, c := range []struct {
			what, url string
			header    map[string]string
			status    int
		}{
			{"nothing", byHost, nil, 403},
			{"wrong", byHost, map[string]string{tokenHeader: wrong}, 403},
			{"dead", byHost, map[string]string{tokenHeader: dead}, 403},
			{"right", byHost, map[string]string{tokenHeader: token}, 200},
			{"right, plain", publicURL(box, "http", 8080, "/x"), map[string]string{tokenHeader: token}, 200},
			{"Cube's header", byHost, map[string]string{"Cube-Traffic-Access-Token": token}, 200},
			{"E2B's header decides", byHost, map[string]string{tokenHeader: wrong, "Cube-Traffic-Access-Token": token}, 403},
			{"the daemon's token elsewhere", byHost, map[string]string{"X-Access-Token": box.Made.EnvdAccessToken}, 403},
			{"the API key", byHost, map[string]string{"X-API-Key": s.Key}, 403},
			{"a closed port without", publicURL(box, "https", 8081, "/"), nil, 403},
			{"a closed port with", publicURL(box, "https", 8081, "/"), map[string]string{tokenHeader: token}, 502},
			{"by header without", harness.URL + "/x", map[string]string{"E2b-Sandbox-Id": box.ID, "E2b-Sandbox-Port": "8080"}, 403},
			{"by header with", harness.URL + "/x", map[string]string{"E2b-Sandbox-Id": box.ID, "E2b-Sandbox-Port": "8080", tokenHeader: token}, 200},
			{"the daemon without", publicURL(box, "https", api.GuestPort, "/health"), nil, 403},
			{"the daemon with its own", publicURL(box, "https", api.GuestPort, "/health"), map[string]string{"X-Access-Token": box.Made.EnvdAccessToken}, 204},
			{"the daemon with the token", publicURL(box, "https", api.GuestPort, "/health"), map[string]string{tokenHeader: token}, 204},
		} {
			status, body := visit(t, s, c.url, c.header)
			if status != c.status || strings.Contains(body, token) {
				t.Errorf("%s: %d %s, want %d and no token", c.what, status, body, c.status)
			}
		}
	}
	expectToken(first, strings.Repeat("f", 64))

	// What the first token let in is cut when there is a second one; the
	// daemon's own visitors stay.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, publicURL(box, "wss", 8080, "/ws"), &websocket.DialOptions{
		HTTPClient: s.HTTP(), HTTPHeader: http.Header{tokenHeader: {first}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	running := box.Start(t, "until [ -e rotated ]; do sleep 0.05; done; echo on")
	rotated, err := s.Client().RotateTrafficToken(t.Context(), box.ID)
	if err != nil {
		t.Fatal(err)
	}
	second := rotated.TrafficAccessToken
	if _, _, err := conn.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the WebSocket of the old token lives on: %v", err)
	}
	box.MustRun(t, "touch rotated")
	if exit, err := running.Wait(); err != nil || exit.Code != 0 {
		t.Errorf("the command that ran meanwhile: %+v, %v", exit, err)
	}
	expectToken(second, first)

	s.Kill()
	s.Start()
	expectToken(second, first)

	for _, path := range []string{"/sandboxes/" + box.ID, "/sandboxes", "/v2/sandboxes"} {
		if a := s.Request(t, "GET", path, ""); a.Status != 200 || strings.Contains(a.Body, second) || strings.Contains(a.Body, "Token") {
			t.Errorf("GET %s: %d %s", path, a.Status, a.Body)
		}
	}
	connected, err := s.Client().Connect(t.Context(), box.ID, 0)
	if err != nil || connected.TrafficAccessToken == nil || *connected.TrafficAccessToken != second {
		t.Errorf("connect: %+v, %v", connected, err)
	}
	if err := s.Client().Kill(t.Context(), box.ID); err != nil {
		t.Fatal(err)
	}
	if status, body := visit(t, s, byHost, map[string]string{tokenHeader: second}); status != 502 {
		t.Errorf("after the kill: %d %s", status, body)
	}
	expectNowhere(t, s, first, second, box.Made.EnvdAccessToken)
}

// expectNowhere looks for secrets in all that the server printed and keeps.
func expectNowhere(t *testing.T, s *harness.Server, secrets ...string) {
	t.Helper()
	look := func(where, text string) {
		for i, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("secret %d is in %s", i, where)
			}
		}
	}
	if out := s.Output(); strings.Contains(out, "api request") {
		look("the log", out)
	} else {
		t.Error("the log is not as detailed as this test wants it")
	}
	files := 0
	err := filepath.WalkDir(s.DataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if filepath.Base(filepath.Dir(path)) == "templates" {
			return nil
		}
		raw, err := os.ReadFile(path)
		files++
		look(path, string(raw))
		return err
	})
	if err != nil || files < 2 {
		t.Errorf("looked at %d files, %v", files, err)
	}
}

// TestPrivatePorts: a port may be an exception, both ways.
func TestPrivatePorts(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	open := withProber(t, s, api.NewSandbox{Network: &api.Network{Ports: map[string]api.Visibility{"8080": api.Private}}})
	closed := private()
	closed.Ports = map[string]api.Visibility{"8080": api.Public}
	shut := withProber(t, s, api.NewSandbox{Network: closed})
	for _, c := range []struct {
		box            *harness.Box
		excepted, rest int
	}{{open, 403, 200}, {shut, 200, 403}} {
		for port, want := range map[int]int{8080: c.excepted, 8090: c.rest} {
			c.box.Start(t, fmt.Sprintf("%s serve %d", prober, port))
			url := publicURL(c.box, "https", port, "/")
			if status, body := visit(t, s, url, nil); status != want {
				t.Errorf("port %d without a token: %d %s, want %d", port, status, body, want)
			}
			if status, body := visit(t, s, url, map[string]string{tokenHeader: *c.box.Made.TrafficAccessToken}); status != 200 {
				t.Errorf("port %d with the token: %d %s", port, status, body)
			}
		}
	}
	// The daemon of a sandbox with one private port is no way around.
	without := open.Made
	without.EnvdAccessToken = ""
	if _, err := s.Client().Open(without).Commands.Run(t.Context(), client.Command{Args: []string{"true"}}); harness.Status(err) != 401 {
		t.Errorf("a command without a token: %v, want 401", err)
	}
}

// TestMaskedHost: programs see the Host they expect, and who was really asked.
func TestMaskedHost(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	mask := "localhost:${PORT}"
	box := withProber(t, s, api.NewSandbox{Network: &api.Network{MaskRequestHost: &mask}})
	box.Start(t, prober+" serve 8080")
	_, body := visit(t, s, publicURL(box, "https", 8080, "/x"), nil)
	host := fmt.Sprintf("8080-%s.%s", box.ID, lab.Domain)
	for _, want := range []string{"GET localhost:8080 /x", "X-Forwarded-Host: " + host, "X-Forwarded-Proto: https"} {
		if !strings.Contains(body, want) {
			t.Errorf("the program does not see %q: %s", want, body)
		}
	}
	detail, err := s.Client().Sandbox(t.Context(), box.ID)
	if err != nil || detail.Network == nil || detail.Network.MaskRequestHost == nil || *detail.Network.MaskRequestHost != mask {
		t.Errorf("shown as %+v, %v", detail.Network, err)
	}
}

// tlsServer answers over TLS alone.
const tlsServer = `import http.server, ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("cert.pem", "key.pem")
server = http.server.HTTPServer(("", 8443), http.server.SimpleHTTPRequestHandler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()`

// TestHTTPSPorts: a program that speaks TLS, with a certificate that nobody
// knows, is reached like any other.
func TestHTTPSPorts(t *testing.T) {
	s := harness.Start(t, harness.Options{})
	box := s.Create(t, api.NewSandbox{Network: &api.Network{HTTPSPorts: []int{8443}}})
	cert, key, err := s.Lab.Certificate("someone.else.test")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"cert.pem": string(cert), "key.pem": string(key), "server.py": tlsServer} {
		if err := box.Files.Write(t.Context(), name, strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	box.Start(t, "python3 server.py")
	if status, body := visit(t, s, publicURL(box, "http", 8443, "/"), nil); status != 200 || !strings.Contains(body, "server.py") {
		t.Errorf("%d %s", status, body)
	}
}
