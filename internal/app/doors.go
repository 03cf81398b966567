package app

import (
	"errors"
	"net/http"
	"slices"

	"github.com/moat-sandbox/moat/internal/ingress"
)

// doors are the ways in, with the same sandboxes behind all: one for everybody, one
// for the operator, and one for sandboxes, behind which there is nothing else.
type doors struct{ public, operator, inside *ingress.Ingress }

// openDoors serves two handlers of the API beside the sandboxes. base has what
// the doors share.
func openDoors(base ingress.Config, limits IngressLimits, public, operator http.Handler) (doors, error) {
	base.MaxConnections, base.MaxInFlight, base.MaxUnknown = limits.Connections, limits.PerSandbox, limits.Unknown
	base.MaxHeader, base.HeaderTimeout, base.RefusePreflight = limits.Header, limits.HeaderTimeout, limits.RefusePreflight
	var d doors
	var err error
	for _, door := range []struct {
		in  **ingress.Ingress
		api http.Handler
	}{{&d.public, public}, {&d.operator, operator}, {&d.inside, nil}} {
		base.API = door.api
		if *door.in, err = ingress.New(base); err != nil {
			return doors{}, errors.Join(err, d.close())
		}
	}
	return d, nil
}

func (d doors) all() []*ingress.Ingress {
	return slices.DeleteFunc([]*ingress.Ingress{d.public, d.operator, d.inside}, func(in *ingress.Ingress) bool { return in == nil })
}

func (d doors) close() error {
	var errs []error
	for _, in := range d.all() {
		errs = append(errs, in.Close())
	}
	return errors.Join(errs...)
}
