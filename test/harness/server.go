// Package harness runs the real server, bin/moat, on the node of a laboratory,
// for tests that look at it from outside: as a client, as a sandbox, as the
// internet, or as the machine it runs on.
package harness

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/internal/lab"
)

// URL is where the server answers inside the lab; it also answers over TLS as
// api.<lab.Domain> and below.
const URL = "http://127.0.0.1"

// patience bounds every wait for something that should take a moment. The
// machine may be busy with much else.
const patience = time.Minute

// Options says what differs from the ordinary server.
type Options struct {
	// Args follow the ordinary flags of moat serve, and beat them.
	Args []string
	// Lab is the configuration of the laboratory.
	Lab lab.Config
	// DataDir is the server's data directory; empty means a fresh one.
	DataDir string
}

// Server is a moat server in a laboratory of its own. It is stopped, and the
// laboratory closed, when the test ends.
type Server struct {
	Lab     *lab.Lab
	DataDir string
	// Key is the API key that the first start printed.
	Key string
	// Wire notes what passes the node's interfaces, those of sandboxes too; nil
	// in a bare laboratory.
	Wire *lab.Capture

	tb     testing.TB
	args   []string
	http   *http.Client
	before []string // the node's inventory when no server had run yet
	output output
	proc   *process
}

// process is one run of the server.
type process struct {
	cmd  *lab.Cmd
	done chan struct{} // closed when it has ended
}

// Start builds a laboratory and starts a server in it.
func Start(tb testing.TB, o Options) *Server {
	tb.Helper()
	s := New(tb, o)
	s.Start()
	return s
}

// New builds a laboratory for a server and does not start it.
func New(tb testing.TB, o Options) *Server {
	tb.Helper()
	s := &Server{tb: tb, DataDir: o.DataDir}
	if s.DataDir == "" {
		s.DataDir = filepath.Join(tb.TempDir(), "data")
	}
	var err error
	if s.Lab, err = lab.New(context.WithoutCancel(tb.Context()), o.Lab); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.cleanup)
	if !o.Lab.Bare {
		if s.Wire, err = s.Lab.Node.Capture(); err != nil {
			tb.Fatal(err)
		}
	}
	if s.before, err = s.inventory(); err != nil {
		tb.Fatal(err)
	}
	files := s.certificates()
	s.args = append([]string{
		"serve", "--data-dir", s.DataDir, "--domain", lab.Domain,
		"--http", "0.0.0.0:80", "--https", "0.0.0.0:443",
		"--tls-cert", files["cert"], "--tls-key", files["key"], "--extra-ca", files["ca"],
		"--upstream-dns", lab.DNSServer,
	}, o.Args...)
	return s
}

// CAFile is where processes on the node find the laboratory's CA.
const CAFile = "/run/lab-ca.pem"

// certificates puts the server's certificate and the lab's CA on the node and
// builds the HTTP client that trusts it.
func (s *Server) certificates() map[string]string {
	s.tb.Helper()
	cert, key, err := s.Lab.Certificate(lab.Domain, "*."+lab.Domain, "127.0.0.1")
	if err != nil {
		s.tb.Fatal(err)
	}
	files := map[string]string{"cert": "/run/lab-cert.pem", "key": "/run/lab-key.pem", "ca": CAFile}
	for name, data := range map[string][]byte{"cert": cert, "key": key, "ca": s.Lab.CA()} {
		if err := s.Lab.Node.WriteFile(files[name], data, 0o600); err != nil {
			s.tb.Fatal(err)
		}
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(s.Lab.CA())
	transport := &http.Transport{
		DialContext:         s.Lab.Node.Dial,
		TLSClientConfig:     &tls.Config{RootCAs: trusted},
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 16,
	}
	s.http = &http.Client{Transport: transport}
	s.tb.Cleanup(transport.CloseIdleConnections)
	return files
}

// announced finds the key in what the server prints when it is ready.
var announced = regexp.MustCompile(`(?m)^export .*\bE2B_API_URL=\S+.*$`)
var announcedKey = regexp.MustCompile(`\bE2B_API_KEY=(e2b_[0-9a-f]+)`)

// Start starts the server and waits until it is ready.
func (s *Server) Start() {
	s.tb.Helper()
	s.Launch()
	ready := func() bool {
		resp, err := s.http.Get(URL + "/health")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode/100 == 2 && announced.MatchString(s.output.since())
	}
	s.waitRunning("the server is ready", ready)
	if key := announcedKey.FindStringSubmatch(s.output.since()); key != nil {
		s.Key = key[1]
	}
	if s.Key == "" {
		s.tb.Fatalf("the server printed no API key:\n%s", s.output.all())
	}
}

// Launch starts the server's process and waits for nothing.
func (s *Server) Launch() {
	s.tb.Helper()
	if s.proc != nil {
		s.tb.Fatal("the server already runs")
	}
	s.output.mark()
	cmd := s.Lab.Node.Command(context.Background(), Binary(s.tb, "moat"), s.args...)
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	cmd.Env = CleanEnv()
	if err := cmd.Start(); err != nil {
		s.tb.Fatal(err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // ProcessState tells
	}()
	s.proc = p
}

// WaitExit waits for the server to end by itself and returns its exit status
// and what it printed since its start.
func (s *Server) WaitExit() (int, string) {
	s.tb.Helper()
	p := s.proc
	select {
	case <-p.done:
	case <-time.After(patience):
		s.tb.Fatalf("the server did not end:\n%s", s.output.since())
	}
	s.proc = nil
	return p.cmd.ProcessState.ExitCode(), s.output.since()
}

// Stop ends the server with SIGTERM and expects it to exit with 0.
func (s *Server) Stop() {
	s.tb.Helper()
	s.Signal(syscall.SIGTERM)
	if status, out := s.WaitExit(); status != 0 {
		s.tb.Errorf("the server exited with %d on SIGTERM:\n%s", status, out)
	}
}

// Kill ends the server with SIGKILL.
func (s *Server) Kill() {
	s.tb.Helper()
	s.Signal(syscall.SIGKILL)
	s.WaitExit()
}

// Second runs another server on the same node, with more flags, and expects it
// to end by itself. It returns its exit status and what it printed.
func (s *Server) Second(args ...string) (int, string) {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(s.tb.Context(), patience)
	defer cancel()
	cmd := s.Lab.Node.Command(ctx, Binary(s.tb, "moat"), slices.Concat(s.args, args)...)
	cmd.Env = CleanEnv()
	out, _ := cmd.CombinedOutput() // ProcessState tells
	if ctx.Err() != nil || cmd.ProcessState == nil {
		s.tb.Fatalf("a second server with %q did not end:\n%s", args, out)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// Signal sends the server a signal.
func (s *Server) Signal(signal os.Signal) {
	s.tb.Helper()
	if s.proc == nil {
		s.tb.Fatal("the server does not run")
	}
	if err := s.proc.cmd.Process.Signal(signal); err != nil {
		s.tb.Fatal(err)
	}
}

// PID is the server's process id on this machine.
func (s *Server) PID() int { return s.proc.cmd.Process.Pid }

// Output is everything that the server has printed so far.
func (s *Server) Output() string { return s.output.all() }

// HTTP is a client on the node that trusts the laboratory's CA.
func (s *Server) HTTP() *http.Client { return s.http }

// Client speaks to the server with the key of its first start.
func (s *Server) Client() *client.Client { return s.ClientOf(s.Key) }

// ClientOf speaks to the server with another key.
func (s *Server) ClientOf(key string) *client.Client {
	s.tb.Helper()
	c, err := client.New(client.Config{APIURL: URL, SandboxURL: URL, APIKey: key, Domain: lab.Domain, HTTP: s.http})
	if err != nil {
		s.tb.Fatal(err)
	}
	return c
}

// Operator speaks to the server over its socket.
func (s *Server) Operator() *client.Client {
	s.tb.Helper()
	c, err := client.New(client.Config{Socket: filepath.Join(s.DataDir, "moat.sock")})
	if err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(c.Close)
	return c
}

// Wait waits until condition holds, and fails the test when it does not.
func (s *Server) Wait(what string, condition func() bool) {
	s.tb.Helper()
	deadline := time.Now().Add(patience)
	for !condition() {
		if time.Now().After(deadline) {
			s.tb.Fatalf("waited %s in vain until %s", patience, what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// waitRunning is Wait for as long as the server runs.
func (s *Server) waitRunning(what string, condition func() bool) {
	s.tb.Helper()
	s.Wait(what, func() bool {
		select {
		case <-s.proc.done:
			_, out := s.WaitExit()
			s.tb.Fatalf("the server ended before %s:\n%s", what, out)
		default:
		}
		return condition()
	})
}

// cleanup ends what still runs. A laboratory that cannot be closed is an error
// of the test's.
func (s *Server) cleanup() {
	if s.tb.Failed() {
		s.tb.Logf("what the server printed:\n%s", s.output.all())
	}
	if s.proc != nil {
		_ = s.proc.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.proc.done:
		case <-time.After(patience):
			s.tb.Error("the server did not end on SIGTERM")
		}
	}
	if s.Wire != nil {
		_ = s.Wire.Close()
	}
	if err := s.Lab.Close(); err != nil {
		s.tb.Errorf("close the lab: %v", err)
	}
	if err := s.removeGroups(); err != nil {
		s.tb.Errorf("remove control groups: %v", err)
	}
}

// output collects what a process writes.
type output struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	start int
}

var _ io.Writer = (*output)(nil)

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

// mark starts what since returns.
func (o *output) mark() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.start = o.buf.Len()
}

func (o *output) since() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.buf.Bytes()[o.start:])
}

func (o *output) all() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
