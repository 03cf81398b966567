package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/ingress"
	"github.com/moat-sandbox/moat/internal/ingress/cert"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/secret"
)

// sandboxes is what is known; nothing changes it.
type sandboxes map[string]ingress.Target

func (s sandboxes) Sandbox(id string) (ingress.Target, bool) {
	t, ok := s[id]
	return t, ok
}

// journal records visits as the server does.
type journal struct{ log *audit.Log }

func (j journal) Finished(r ingress.Record) {
	j.log.Append(audit.Record{
		Time: r.Time, Duration: r.Duration, Sandbox: r.Sandbox, Direction: audit.In, Protocol: audit.HTTP,
		Dst: netip.AddrPortFrom(r.Client, r.Port), Verdict: policy.Allow, Rule: string(r.Reason), Method: r.Method, Path: r.Path, Status: r.Status,
	})
}

// serveIngress is the process that is measured as moat.
func serveIngress(ctx context.Context, dir, plain, secure string, known int, logged bool) error {
	all := make(sandboxes)
	for id := sandboxID; len(all) < known; id = sandbox.NewID() {
		all[id] = ingress.Target{
			ID: id, Addr: netip.MustParseAddr("127.0.0.1"), Done: make(chan struct{}), Token: secret.New(token),
		}
	}
	config := ingress.Config{
		Domain: domain, Sandboxes: all, API: http.NotFoundHandler(), Logger: slog.New(slog.DiscardHandler),
	}
	if logged {
		file, err := audit.OpenFile(audit.FileConfig{Path: filepath.Join(dir, "audit.jsonl"), Logger: config.Logger})
		if err != nil {
			return err
		}
		go file.Run(ctx)
		log, err := audit.New(audit.Config{File: file})
		if err != nil {
			return err
		}
		config.Observer = journal{log}
	}
	in, err := ingress.New(config)
	if err != nil {
		return err
	}
	files, err := cert.Open(filepath.Join(dir, certFile), filepath.Join(dir, keyFile), config.Logger)
	if err != nil {
		return err
	}
	server := in.Server()
	open, err := ingress.Listen(plain)
	if err != nil {
		return err
	}
	closed, err := ingress.ListenTLS(secure, &tls.Config{
		GetCertificate: files.Certificate, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12,
	})
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- server.Serve(open) }()
	go func() { ended <- server.Serve(closed) }()
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	return errors.Join(err, server.Close(), in.Close())
}
