package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moat-sandbox/moat/internal/control"
	"github.com/moat-sandbox/moat/internal/ingress"
	"github.com/moat-sandbox/moat/internal/store/bolt"
)

// Run is the server: it returns when ctx ends and everything is taken down, or
// when it could not start. Sandboxes survive it unless KillOnExit is set.
func Run(ctx context.Context, c Config) (err error) {
	var down teardown
	defer func() { err = errors.Join(err, down.run()) }()

	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return fmt.Errorf("create data directory: %w", err)
	}
	records, err := bolt.Open(filepath.Join(c.DataDir, "moat.db"))
	if err != nil {
		return err
	}
	down.add("close store", records.Close)

	listening, err := listen(c)
	if err != nil {
		return err
	}
	down.add("close listeners", func() error { listening.close(); return nil })

	log, err := openJournal(c)
	if err != nil {
		return err
	}
	down.add("close audit log", log.close)

	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	m, err := assemble(ctx, c, listening.home, records, log.Log, fail)
	if err != nil {
		return err
	}
	down.add("leave the machine in order", func() error { return m.release(c.KillOnExit) })

	gate := &gate{Node: m.node}
	api, err := control.New(control.Config{
		Store:      records,
		Engine:     gate,
		Templates:  m.templates,
		Flows:      log,
		Lifetime:   ctx,
		Secrets:    m.secrets,
		Compile:    m.compile,
		Domain:     c.Domain,
		Scheme:     scheme(c),
		Anonymous:  c.Anonymous,
		MaxTimeout: c.MaxTimeout,
		Logger:     c.Logger,
	})
	if err != nil {
		return err
	}
	metrics := newMetrics(m.node.Count)
	in, err := openDoors(ingress.Config{
		Domain: hostOnly(c.Domain), Sandboxes: gate, IsKey: api.IsKey, Observer: visits{log.Log}, Logger: c.Logger,
	}, c.Ingress, listening.certificates.prove(api.Handler()), metrics.beside(api.Operator()))
	if err != nil {
		return err
	}
	down.add("close public URLs", in.close)
	gate.doors, metrics.doors = in.all(), in.all()

	// Last, because a key that was made but never shown is lost.
	firstKey, err := control.Bootstrap(ctx, records, c.APIKey)
	if err != nil {
		return err
	}
	if c.Ready != nil {
		c.Ready(endpoints(c, listening, firstKey))
	}
	err = listening.serve(running, in, metrics)
	if broken := context.Cause(running); broken != nil && ctx.Err() == nil {
		err = errors.Join(broken, err)
	}
	return err
}
