// Package guest is the daemon inside every sandbox: it runs commands, serves
// files and tells about itself, over E2B's protocol.
//
// It is the sandbox's init and root in it, and so is the code it guards against
// nothing: whoever holds the access token, or is root inside, owns the sandbox.
// What it must not do is to give more than was asked for: commands and files
// are touched with the rights of the chosen user. It logs no environment, no
// input, no file contents and no tokens.
package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/api/filesystem"
	processapi "github.com/moat-sandbox/moat/api/process"
	"github.com/moat-sandbox/moat/internal/guest/child"
	"github.com/moat-sandbox/moat/internal/guest/files"
	"github.com/moat-sandbox/moat/internal/guest/process"
	"github.com/moat-sandbox/moat/internal/guest/session"
	"github.com/moat-sandbox/moat/internal/guest/setup"
)

const (
	// endRetention is how long the end of a process can be asked for.
	endRetention = 30 * time.Second
	// maxMessage bounds one message of a remote procedure call.
	maxMessage = 64 << 20
	// headerTimeout bounds the wait for a request's header.
	headerTimeout = 30 * time.Second
	// idleTimeout is longer than that of E2B's gateway, so that the other side
	// closes first and never sends into a closing connection.
	idleTimeout = 11 * time.Minute
)

// Config says how the daemon runs.
type Config struct {
	// Addr is where it listens, "host:port". An empty host means all
	// addresses, of IPv4 and IPv6.
	Addr string
	// Init makes it collect every orphaned process, as process 1 must.
	Init bool
	// Path is the PATH of commands.
	Path string
	// Root is the directory whose etc and run /init writes to: "/" in a
	// sandbox.
	Root string
	// Setup is applied before anyone is served. When that fails, /init says so.
	Setup api.GuestSetup
	Log   *slog.Logger
}

// Server is the daemon.
type Server struct {
	config   Config
	listener net.Listener
	http     *http.Server
	sessions *session.Store
	reaper   *child.Reaper
	process  *process.Service
	files    *files.Service
	load     *load

	common       map[string]string // environment that follows from the setup
	unfit        error             // why the setup failed
	initializing sync.Mutex        // held by /init
}

// New checks the configuration and starts to listen. Run must be called.
func New(c Config) (*Server, error) {
	if c.Log == nil || c.Path == "" || c.Root == "" {
		return nil, errors.New("guest daemon: configuration is incomplete")
	}
	// Before it listens: whoever gets an answer finds it done.
	common, unfit := setup.Do(setup.Disk(c.Root), c.Setup, c.Log)
	if unfit != nil {
		unfit = fmt.Errorf("set up the sandbox: %w", unfit)
		c.Log.Error("the sandbox is not usable", "error", unfit)
	}
	var listen net.ListenConfig
	listen.SetMultipathTCP(false) // nobody speaks it on a virtual network
	listener, err := listen.Listen(context.Background(), "tcp", c.Addr)
	if err != nil {
		return nil, fmt.Errorf("guest daemon: %w", err)
	}
	s := &Server{
		config:   c,
		listener: listener,
		sessions: &session.Store{},
		reaper:   child.NewReaper(c.Init),
		load:     newLoad(),
		common:   common,
		unfit:    unfit,
	}
	s.files = files.NewService(s.sessions)
	s.process, err = process.New(process.Config{
		Sessions:  s.sessions,
		Reaper:    s.reaper,
		Log:       c.Log,
		Path:      c.Path,
		Retention: endRetention,
	})
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler:           s.handler(),
		Protocols:         &protocols,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(c.Log.Handler(), slog.LevelWarn),
	}
	return s, nil
}

// Addr is where the daemon listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until the context ends. Then it closes all connections, kills the
// processes it started and returns.
func (s *Server) Run(ctx context.Context) error {
	reaping, stopReaping := context.WithCancel(context.WithoutCancel(ctx))
	reaped := make(chan error, 1)
	go func() { reaped <- s.reaper.Run(reaping) }()
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.listener) }()
	rehearsing, stopRehearsing := context.WithCancel(ctx)
	rehearsed := make(chan struct{})
	go func() {
		defer close(rehearsed)
		s.rehearse(rehearsing)
	}()

	var err error
	select {
	case <-ctx.Done():
		err = s.http.Close()
		if e := <-served; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	case err = <-served:
		err = errors.Join(err, s.http.Close())
	}
	stopRehearsing()
	<-rehearsed
	s.process.Close()
	err = errors.Join(err, s.files.Close())
	stopReaping()
	return errors.Join(err, <-reaped)
}

// handler is everything the daemon serves.
func (s *Server) handler() http.Handler {
	options := connect.WithHandlerOptions(
		connect.WithReadMaxBytes(maxMessage),
		// Take compressed requests, but compress nothing: the network to the
		// caller is a virtual one, faster than gzip.
		connect.WithCompressMinBytes(math.MaxInt),
	)
	mux := http.NewServeMux()
	mux.Handle(processapi.NewProcessHandler(s.process, options))
	mux.Handle(filesystem.NewFilesystemHandler(s.files, options))
	mux.Handle("/files", files.NewContents(s.sessions, s.config.Log))
	mux.HandleFunc("GET /health", health)
	mux.HandleFunc("POST /init", s.init)
	mux.HandleFunc("GET /metrics", s.metrics)
	mux.HandleFunc("GET /envs", s.envs)
	mux.HandleFunc("/", unknown)
	return anyOrigin(s.authorized(unlimited(mux)))
}
