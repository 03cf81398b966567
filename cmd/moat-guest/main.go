// Command moat-guest is the daemon inside every sandbox, where it runs as root
// and as process 1. It learns everything else from its first POST /init.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/guest"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const (
	// startTime is after which time garbage is collected as usual.
	startTime = 2 * time.Second
	// startHeap is how much memory the daemon may use before that and collect
	// nothing, in bytes. A start stays below it.
	startHeap = 32 << 20
)

// The daemon changes the rights of threads for a while. The main thread stands
// for the whole process in the eyes of others, so it never serves anything else.
func init() { runtime.LockOSThread() }

func main() {
	addr := flag.String("addr", ":"+strconv.Itoa(api.GuestPort), "`address` to listen on")
	setup := flag.String("setup", "", "`file` with what to set up before listening")
	verbose := flag.Bool("verbose", false, "log more")
	flag.Parse()
	level := slog.LevelInfo
	if *verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if flag.NArg() > 0 {
		log.Error("unexpected argument", "argument", flag.Arg(0))
		os.Exit(2)
	}
	if err := run(*addr, *setup, log); err != nil {
		log.Error("guest daemon failed", "error", err)
		os.Exit(1)
	}
}

func run(addr, setupFile string, log *slog.Logger) error {
	collectLater()
	syscall.Umask(0o022)
	// Nobody but root may look into this process, which holds the token.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	setup, err := readSetup(setupFile)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	server, err := guest.New(guest.Config{
		Addr:  addr,
		Init:  os.Getpid() == 1,
		Path:  cmp.Or(os.Getenv("PATH"), defaultPath),
		Root:  "/",
		Setup: setup,
		Log:   log,
	})
	if err != nil {
		return err
	}
	return server.Run(ctx)
}

// collectLater keeps the daemon from collecting garbage while somebody may wait
// for its start. From then on it is small rather than fast: there are many of us
// on one machine.
func collectLater() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(startHeap)
	time.AfterFunc(startTime, func() {
		debug.SetGCPercent(50)
		debug.SetMemoryLimit(math.MaxInt64)
		debug.FreeOSMemory()
	})
}

func readSetup(file string) (setup api.GuestSetup, err error) {
	if file == "" {
		return setup, nil
	}
	content, err := os.ReadFile(file)
	if err == nil {
		setup, err = api.DecodeGuestSetup(content)
	}
	if err != nil {
		return setup, fmt.Errorf("read setup: %w", err)
	}
	return setup, nil
}
