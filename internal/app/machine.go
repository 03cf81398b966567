package app

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress/intercept"
	"github.com/moat-sandbox/moat/internal/egress/kernel"
	"github.com/moat-sandbox/moat/internal/guest/image"
	"github.com/moat-sandbox/moat/internal/guest/setup"
	"github.com/moat-sandbox/moat/internal/node"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/sandbox/gvisor"
	"github.com/moat-sandbox/moat/internal/sandbox/namespaces"
	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
	"github.com/moat-sandbox/moat/internal/template"
	"github.com/moat-sandbox/moat/internal/template/base"
	"github.com/moat-sandbox/moat/internal/vault"
)

// releaseTimeout bounds taking the machine's state down.
const releaseTimeout = time.Minute

// machine is what a server holds of the machine it runs on.
type machine struct {
	records   store.Store
	runtime   sandbox.Runtime
	network   *kernel.Network
	carrier   *carrier
	direct    *direct
	templates *template.Library
	secrets   *vault.Vault
	node      *node.Node
	compile   func(policy.Document) (*policy.Policy, error)
}

// assemble brings the machine's parts up, and adopts what an earlier server has
// left. failed is told if the carrier breaks later.
func assemble(ctx context.Context, c Config, h home, records store.Store, log *audit.Log, failed func(error)) (_ *machine, err error) {
	m := &machine{records: records}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.release(false))
		}
	}()
	ca, err := trustedCA(c)
	if err != nil {
		return nil, err
	}
	master, err := secret.OpenMaster(filepath.Join(c.DataDir, "master.key"))
	if err != nil {
		return nil, err
	}
	if m.secrets, err = vault.Open(ctx, vault.Config{Store: records, Master: master, Logger: c.Logger}); err != nil {
		return nil, err
	}
	instance := instanceName(c.DataDir)
	if m.runtime, err = newRuntime(c, instance); err != nil {
		return nil, err
	}
	if err := demand(ctx, m.runtime, c); err != nil {
		return nil, err
	}
	var never *policy.Never
	if m.network, never, err = openNetwork(c, instance, h.names); err != nil {
		return nil, err
	}
	root, err := intercept.OpenRoot(filepath.Join(c.DataDir, "egress-ca.pem"))
	if err != nil {
		return nil, err
	}
	look, err := newInsight(root, ca, m.secrets)
	if err != nil {
		return nil, err
	}
	if m.carrier, err = openCarrier(c, h, never, m.network.Doors(), look, log, failed); err != nil {
		return nil, err
	}
	m.direct = watchDirect(c, m.network, m.carrier, log)
	common := node.GuestSetup(ca+string(root.PEM()), hostRoots())
	m.templates, err = template.Open(template.Config{
		Dir: filepath.Join(c.DataDir, "templates"), Store: records, Logger: c.Logger, Defaults: defaultLimits(),
		SetUp: func(f base.Files) error { return setup.DoAhead(f, common, c.Logger) },
	})
	if err != nil {
		return nil, err
	}
	if err := m.templates.EnsureBase(ctx); err != nil {
		return nil, err
	}
	guest, err := buildGuest(ctx, c, common)
	if err != nil {
		return nil, err
	}
	m.compile = func(doc policy.Document) (*policy.Policy, error) {
		return policy.Parse(doc, policy.Options{Never: never, Home: h.urls, Rules: true})
	}
	m.node, err = node.Open(ctx, node.Config{
		Store: records, Network: m.network, Tenants: &m.carrier.tenants, Flows: m.carrier.proxy, Audit: log, Runtime: m.runtime, Templates: m.templates,
		Guest: guest, Master: master, Compile: m.compile, Logger: c.Logger,
		Warm: defaultLimits(), Pool: c.Pool, Ahead: template.Base, MaxSandboxes: c.MaxSandboxes, TeamLimit: c.TeamLimit,
	})
	if err != nil {
		return nil, err
	}
	return m, m.recordGap(ctx, log)
}

// defaultLimits bound a sandbox whose template says nothing else.
func defaultLimits() sandbox.Limits {
	return sandbox.Limits{CPUs: 2, MemoryMB: 512, DiskMB: 1024, Processes: 1024}
}

func buildGuest(ctx context.Context, c Config, common api.GuestSetup) (sandbox.Guest, error) {
	binary, err := image.Binary()
	if err != nil {
		return sandbox.Guest{}, err
	}
	encoded, err := common.Encode()
	if err != nil {
		return sandbox.Guest{}, fmt.Errorf("encode guest setup: %w", err)
	}
	return template.BuildGuest(ctx, binary, encoded, filepath.Join(c.DataDir, "guest"))
}

func newRuntime(c Config, instance string) (sandbox.Runtime, error) {
	root := filepath.Join(runDir(instance), c.Isolation)
	switch c.Isolation {
	case GVisor:
		r, err := gvisor.New(gvisor.Config{Root: root, Instance: instance, Logger: c.Logger})
		if err != nil { // a nil *Runtime must not become a Runtime
			return nil, err
		}
		return r, nil
	case Namespaces:
		r, err := namespaces.New(namespaces.Config{Root: root, Instance: instance, Logger: c.Logger})
		if err != nil {
			return nil, err
		}
		return r, nil
	default:
		return nil, fmt.Errorf("isolation %q is unknown", c.Isolation)
	}
}

// demand boots a box to see what the machine gives, and refuses less than was
// asked for.
func demand(ctx context.Context, r sandbox.Runtime, c Config) error {
	caps, err := r.Probe(ctx)
	if err != nil {
		return fmt.Errorf("isolation %s does not work on this machine (see moat doctor): %w", c.Isolation, err)
	}
	if c.Isolation == GVisor && !caps.Kernel {
		return fmt.Errorf("isolation %s was asked for, this machine gives only: %s", c.Isolation, caps.Isolation)
	}
	if !caps.Kernel {
		c.Logger.Warn("sandboxes share the host's kernel", "isolation", caps.Isolation)
	}
	for _, missing := range caps.Missing {
		c.Logger.Warn("the machine lacks something", "what", missing)
	}
	c.Logger.Info("isolation", "runtime", r.Name(), "gives", caps.Isolation,
		"cpu", caps.Enforced.CPU, "memory", caps.Enforced.Memory, "disk", caps.Enforced.Disk, "processes", caps.Enforced.Processes)
	return nil
}

// release takes down what must not outlive the server. When no sandbox is
// recorded any more, nothing else is left either.
func (m *machine) release(kill bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	var errs []error
	if m.node != nil {
		if kill {
			errs = append(errs, m.node.KillAll(ctx))
		}
		m.node.Close()
	}
	if m.carrier != nil {
		errs = append(errs, m.carrier.close())
	}
	if m.direct != nil {
		m.direct.close()
	}
	left, err := m.records.Sandboxes(ctx, "")
	errs = append(errs, err)
	empty := err == nil && len(left) == 0
	if m.network != nil {
		errs = append(errs, m.closeNetwork(ctx, empty))
	}
	if m.runtime != nil {
		errs = append(errs, m.runtime.Close())
	}
	if m.templates != nil && empty {
		errs = append(errs, m.templates.Unmount())
	}
	return errors.Join(errs...)
}
