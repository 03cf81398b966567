package app

import (
	"errors"
	"net/http"

	"github.com/moat-sandbox/moat/internal/ingress"
)

// doors are the two ways in: one for everybody, and one for the operator, with
// the same sandboxes behind both.
type doors struct{ public, operator *ingress.Ingress }

// openDoors serves two handlers of the API beside the sandboxes. base has what
// both doors share.
func openDoors(base ingress.Config, limits IngressLimits, public, operator http.Handler) (doors, error) {
	base.MaxConnections, base.MaxInFlight, base.MaxUnknown = limits.Connections, limits.PerSandbox, limits.Unknown
	base.MaxHeader, base.HeaderTimeout, base.RefusePreflight = limits.Header, limits.HeaderTimeout, limits.RefusePreflight
	var d doors
	var err error
	base.API = public
	if d.public, err = ingress.New(base); err != nil {
		return doors{}, err
	}
	base.API = operator
	if d.operator, err = ingress.New(base); err != nil {
		return doors{}, errors.Join(err, d.public.Close())
	}
	return d, nil
}

func (d doors) all() []*ingress.Ingress { return []*ingress.Ingress{d.public, d.operator} }

func (d doors) close() error { return errors.Join(d.operator.Close(), d.public.Close()) }
