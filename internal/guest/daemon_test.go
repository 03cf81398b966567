package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/api/filesystem"
	processapi "github.com/moat-sandbox/moat/api/process"
	"github.com/moat-sandbox/moat/internal/guest/session"
)

const testPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// daemon is a running guest daemon with clients for it.
type daemon struct {
	t     *testing.T
	url   string
	root  string
	token string
	log   *lockedBuffer
	stop  func()
}

// lockedBuffer collects what the daemon logs.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start runs a daemon that has not been initialised.
func start(t *testing.T) *daemon {
	t.Helper()
	return startIn(t, t.TempDir(), api.GuestSetup{})
}

// startIn runs a daemon in a root directory. Its end is part of the test:
// everything it started must be gone.
func startIn(t *testing.T, root string, setup api.GuestSetup) *daemon {
	t.Helper()
	d := &daemon{t: t, root: root, log: &lockedBuffer{}}
	server, err := New(Config{
		Addr:  "127.0.0.1:0",
		Path:  testPath,
		Root:  d.root,
		Setup: setup,
		Log:   slog.New(slog.NewTextHandler(d.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	d.url = "http://" + server.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	d.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the daemon ended with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the daemon did not end")
		}
	})
	t.Cleanup(d.stop)
	return d
}

// ready runs an initialised daemon.
func ready(t *testing.T, in api.GuestInit) *daemon {
	t.Helper()
	d := start(t)
	if status, body := d.init(in, ""); status != http.StatusNoContent {
		t.Fatalf("init: %d %s", status, body)
	}
	d.token = in.AccessToken
	return d
}

func (d *daemon) init(in api.GuestInit, token string) (int, string) {
	d.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		d.t.Fatal(err)
	}
	res := d.do("POST", "/init", bytes.NewReader(body), map[string]string{session.TokenHeader: token})
	return res.StatusCode, read(d.t, res)
}

// do sends a plain request; headers with empty values are left out.
func (d *daemon) do(method, path string, body io.Reader, headers map[string]string) *http.Response {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, d.url+path, body)
	if err != nil {
		d.t.Fatal(err)
	}
	for name, value := range headers {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	res, err := (&http.Transport{DisableCompression: true}).RoundTrip(req)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { res.Body.Close() })
	return res
}

func read(t *testing.T, res *http.Response) string {
	t.Helper()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// withHeaders adds headers to every call of a client.
type withHeaders struct {
	headers map[string]string
	next    http.RoundTripper
}

func (w withHeaders) RoundTrip(r *http.Request) (*http.Response, error) {
	for name, value := range w.headers {
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	return w.next.RoundTrip(r)
}

func (d *daemon) httpClient(headers map[string]string) *http.Client {
	all := map[string]string{session.TokenHeader: d.token}
	for name, value := range headers {
		all[name] = value
	}
	return &http.Client{Transport: withHeaders{all, &http.Transport{}}}
}

func (d *daemon) process(headers map[string]string, opts ...connect.ClientOption) processapi.ProcessClient {
	return processapi.NewProcessClient(d.httpClient(headers), d.url, opts...)
}

func (d *daemon) filesystem(headers map[string]string, opts ...connect.ClientOption) filesystem.FilesystemClient {
	return filesystem.NewFilesystemClient(d.httpClient(headers), d.url, opts...)
}

// as returns the header that chooses a user.
func as(user string) map[string]string {
	req := &http.Request{Header: http.Header{}}
	req.SetBasicAuth(user, "")
	return map[string]string{"Authorization": req.Header.Get("Authorization")}
}

// codecs are the encodings every client may choose.
var codecs = map[string][]connect.ClientOption{
	"json":     {connect.WithProtoJSON()},
	"proto":    nil,
	"grpc-web": {connect.WithGRPCWeb()},
}

// openDir returns a directory that the user owns and everyone may enter.
func openDir(t *testing.T, uid, gid int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "guest-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	return dir
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func wantCode(t *testing.T, err error, code connect.Code, text string) {
	t.Helper()
	if connect.CodeOf(err) != code || err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error = %v (%v), want %v with %q", err, connect.CodeOf(err), code, text)
	}
}

// rawConn opens a connection for requests that no client would send.
func (d *daemon) rawConn() net.Conn {
	d.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { conn.Close() })
	return conn
}
