package api

// Flow is the body of POST /sandboxes/{sandboxID}/network/explain: a connection
// that the sandbox might make.
type Flow struct {
	// Address is the IPv4 or IPv6 address to contact.
	Address string `json:"address"`
	// Port is 0 for ICMP.
	Port int64 `json:"port,omitzero"`
	// Protocol is tcp, udp or icmp; absent means tcp.
	Protocol string `json:"protocol,omitempty"`
}

// Explanation says what becomes of a flow, and why.
type Explanation struct {
	Verdict string `json:"verdict"` // allow or deny
	// Rule is what decided: never, allowOut, denyOut or default.
	Rule string `json:"rule"`
	// Entry is the entry of the list that matched, as the caller wrote it.
	Entry string `json:"entry,omitempty"`
	// Reason says it in a sentence.
	Reason string `json:"reason"`
	// Generation numbers the network document that was asked.
	Generation uint64 `json:"generation"`
}
