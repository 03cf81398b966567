package dial

// Inside makes a dialler connect from another network namespace.
func Inside(d *Dialer, enter func(connect func() error) error) { d.enter = enter }

// Order is order.
var Order = order
