package app

import (
	"context"
	"time"

	"github.com/moat-sandbox/moat/internal/ingress"
	"github.com/moat-sandbox/moat/internal/ingress/link"
	"github.com/moat-sandbox/moat/internal/node"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/secret"
)

// gate stands between the node and the public URLs. It tells them where a
// sandbox is and who may come in, and makes them look again when that changed.
type gate struct {
	*node.Node
	// doors are set before anything is served.
	doors []*ingress.Ingress
}

// Sandbox implements ingress.Lookup.
func (g *gate) Sandbox(id string) (ingress.Target, bool) {
	r, ok := g.Reach(id)
	if !ok {
		return ingress.Target{}, false
	}
	return ingress.Target{
		ID: id, Addr: r.Addr, Done: r.Done,
		Public:     r.Record.Ingress.Public,
		Ports:      r.Record.Ingress.Ports,
		Token:      r.Keys.Traffic,
		LinkKey:    r.Keys.Link,
		GuestToken: r.Keys.Guest,
		MaskHost:   r.Record.Ingress.MaskHost,
		HTTPSPorts: r.Record.Ingress.HTTPSPorts,
	}, true
}

// Link implements control.Engine.
func (g *gate) Link(id string, port uint16, life time.Duration) (query string, expires time.Time, err error) {
	r, ok := g.Reach(id)
	if !ok {
		return "", time.Time{}, sandbox.ErrNotFound
	}
	query, grant, err := link.New(r.Keys.Link, id, port, life)
	return query, grant.Expires, err
}

// RotateTrafficToken implements control.Engine. What the old token let in is
// cut before it returns.
func (g *gate) RotateTrafficToken(ctx context.Context, id string) (secret.String, error) {
	token, err := g.Node.RotateTrafficToken(ctx, id)
	if err != nil {
		return secret.String{}, err
	}
	for _, door := range g.doors {
		door.Recheck(id)
	}
	return token, nil
}
