// Command moat runs AI sandboxes whose internet access is under control, and
// manages them: it is the server and its command line in one binary.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/moat-sandbox/moat/internal/app"
	"github.com/moat-sandbox/moat/internal/sandbox/gvisor"
)

// The main goroutine keeps the main thread: a goroutine that enters another
// network namespace on it would pin that namespace for good.
func init() { runtime.LockOSThread() }

func main() {
	gvisor.Dispatch()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// The first signal asks for a clean end, the second one gets its way.
	context.AfterFunc(ctx, stop)
	c := &cli{
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		env:    environment(os.Environ()),
		run:    app.Run,
		doctor: app.Doctor,
	}
	os.Exit(c.main(ctx, os.Args[1:]))
}
