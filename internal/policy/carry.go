package policy

// Carry says which TCP flows of a sandbox the proxy carries; all others go
// their way in the kernel. Each constant carries all that the one before it
// does. With anything but CarryNone our resolver answers what is sent to port
// 53, unless the policy allows that destination by address.
//
// What is never reachable is carried to nobody.
type Carry uint8

const (
	// CarryNone: addresses decide everything.
	CarryNone Carry = iota
	// CarryWeb: ports 80 and 443, except to destinations allowed by address.
	CarryWeb
	// CarryAllWeb: ports 80 and 443, wherever to. From here on UDP to port 443,
	// which is QUIC, is denied.
	CarryAllWeb
	// CarryTCP: every port, wherever to.
	CarryTCP
)

// String returns the constant's name in plain words.
func (c Carry) String() string {
	switch c {
	case CarryNone:
		return "none"
	case CarryWeb:
		return "web"
	case CarryAllWeb:
		return "all web"
	case CarryTCP:
		return "tcp"
	}
	return "unknown"
}

// Carry returns which flows need the proxy to be judged.
func (p *Policy) Carry() Carry {
	if _, upstream := p.Upstream(); upstream {
		return CarryTCP
	}
	switch {
	case p.Rules():
		return CarryAllWeb
	case p.Names():
		return CarryWeb
	}
	return CarryNone
}
