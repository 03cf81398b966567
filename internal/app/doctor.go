package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/egress/kernel"
	"github.com/moat-sandbox/moat/internal/guest/image"
	"github.com/moat-sandbox/moat/internal/sandbox"
)

// diskWanted is how much room the data directory should have, in bytes:
// templates and the records of sandboxes go there.
const diskWanted = 1 << 30

// Doctor looks at the machine and says what a server would find. It boots a
// throw-away sandbox and removes it again.
func Doctor(ctx context.Context, c Config) (Report, error) {
	var r Report
	if os.Geteuid() != 0 {
		r.fail("user", "not root: namespaces, nftables and mounts need root")
		return r, nil
	}
	r.ok("user", "root")
	r.dataDir(c.DataDir)
	if _, err := image.Binary(); err != nil {
		r.fail("guest daemon", err.Error())
	} else {
		r.ok("guest daemon", "part of this binary")
	}
	instance := instanceName(c.DataDir)
	if err := r.network(instance); err != nil {
		return r, err
	}
	// A directory of its own: a running server's boxes are none of our business.
	return r, r.isolation(ctx, c, instance+"-doctor")
}

func (r *Report) add(level Level, subject, detail string) {
	r.Findings = append(r.Findings, Finding{Level: level, Subject: subject, Detail: detail})
}

func (r *Report) ok(subject, detail string)   { r.add(OK, subject, detail) }
func (r *Report) warn(subject, detail string) { r.add(Warn, subject, detail) }
func (r *Report) fail(subject, detail string) { r.add(Fail, subject, detail) }

func (r *Report) dataDir(dir string) {
	// The nearest parent that exists tells how much room there is.
	existing := dir
	for {
		if _, err := os.Stat(existing); err == nil || existing == filepath.Dir(existing) {
			break
		}
		existing = filepath.Dir(existing)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(existing, &fs); err != nil {
		r.fail("data directory", fmt.Sprintf("%s: %v", dir, err))
		return
	}
	free := fs.Bavail * uint64(fs.Bsize)
	detail := fmt.Sprintf("%s, %d MiB free", dir, free>>20)
	if free < diskWanted {
		r.warn("data directory", detail+": little room for templates")
		return
	}
	r.ok("data directory", detail)
}

func (r *Report) network(instance string) error {
	seen, err := kernel.Inspect(instance)
	if err != nil {
		return err
	}
	for _, u := range seen.Uplinks {
		r.ok("uplink "+u.Name, fmt.Sprintf("MTU %d, IPv4 %s, IPv6 %s", u.MTU, yesNo(u.IPv4), yesNo(u.IPv6)))
	}
	for _, finding := range seen.Findings {
		r.warn("network", finding)
	}
	return nil
}

// isolation finds out by doing it what a sandbox gets here.
func (r *Report) isolation(ctx context.Context, c Config, instance string) (err error) {
	// The globals that a runtime replaces must not swallow our own report, so
	// this comes last.
	runtime, err := newRuntime(c, instance)
	if err != nil {
		r.fail("isolation "+c.Isolation, err.Error())
		return nil
	}
	defer func() {
		err = errors.Join(err, runtime.Close(), os.RemoveAll(runDir(instance)))
	}()
	caps, err := runtime.Probe(ctx)
	if err != nil {
		r.fail("isolation "+c.Isolation, err.Error())
		return nil
	}
	r.Isolation = caps.Isolation
	if caps.Kernel {
		r.ok("isolation "+c.Isolation, caps.Isolation)
	} else {
		r.warn("isolation "+c.Isolation, caps.Isolation)
	}
	r.limits(caps.Enforced)
	for _, missing := range caps.Missing {
		r.warn("machine", missing)
	}
	return nil
}

func (r *Report) limits(e sandbox.Enforced) {
	for _, l := range []struct {
		what     string
		enforced bool
	}{{"CPU", e.CPU}, {"memory", e.Memory}, {"disk", e.Disk}, {"processes", e.Processes}} {
		if l.enforced {
			r.ok(l.what+" limit", "enforced")
		} else {
			r.warn(l.what+" limit", "not enforced on this machine")
		}
	}
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}
