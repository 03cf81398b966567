package load

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Ready is what Refused and Cut print when it is time to act on them.
const Ready = "ready\n"

// Now reads a clock that all processes share.
func Now() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	return time.Duration(now.Nano()), nil
}

func (l Load) untilRefused(ctx context.Context) (Outcome, error) {
	return l.until(func() error {
		conn, err := l.dial(ctx)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// untilCut talks with an echo.
func (l Load) untilCut(ctx context.Context) (Outcome, error) {
	conn, err := l.dial(ctx)
	if err != nil {
		return Outcome{}, err
	}
	defer conn.Close()
	word := []byte("hello")
	return l.until(func() error {
		if _, err := conn.Write(word); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, word)
		return err
	})
}

// until does it until it fails, and says when that was.
func (l Load) until(do func() error) (o Outcome, err error) {
	began := time.Now()
	for {
		failed := do()
		if o.At, err = Now(); failed != nil || err != nil {
			o.Took = time.Since(began)
			return o, err
		}
		if time.Since(began) > l.Time {
			return o, fmt.Errorf("%s to %s: it still goes on after %v", l.Kind, l.Target, l.Time)
		}
		if o.Count++; o.Count == 1 {
			if _, err := os.Stdout.WriteString(Ready); err != nil {
				return o, err
			}
		}
	}
}
