package gvisor

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"gvisor.dev/gvisor/pkg/log"
)

// logEmitter passes what gVisor's library logs in this process to slog, one
// level lower: its warnings are about details that the driver reports as errors.
type logEmitter struct{ log *slog.Logger }

// Emit implements gVisor's log.Emitter.
func (e logEmitter) Emit(_ int, level log.Level, _ time.Time, format string, args ...any) {
	if level != log.Warning || !e.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	e.log.Debug("gvisor: " + fmt.Sprintf(format, args...))
}
