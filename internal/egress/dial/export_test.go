package dial

import (
	"context"
	"net/netip"
)

// Inside makes a dialler connect from another network namespace.
func Inside(d *Dialer, enter func(connect func() error) error) { d.enter = enter }

// Anywhere lets a dialler connect to servers on its own machine.
func Anywhere(d *Dialer) { d.elsewhere = func(local, remote netip.Addr) error { return nil } }

// Order is order.
var Order = order

// Control asks what is asked right before a socket connects.
func Control(d *Dialer, address string) error {
	return d.control(context.Background(), "tcp", address, nil)
}

// ConnectSOCKS is connectSOCKS.
var ConnectSOCKS = connectSOCKS
