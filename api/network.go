package api

import "time"

// NetworkState is the answer to GET /sandboxes/{sandboxID}/network: what the
// sandbox may reach, as it is in force.
type NetworkState struct {
	// Generation numbers it; every change counts. It is also the ETag, to be
	// given as If-Match with a change.
	Generation uint64 `json:"generation"`
	// Network and AllowInternetAccess are the document as given; absent and null
	// where nothing was.
	Network             *Network `json:"network,omitzero"`
	AllowInternetAccess *bool    `json:"allowInternetAccess"`
	// Effective is what follows from the document and the grants.
	Effective EffectiveNetwork `json:"effective"`
	// Grants are the temporary ones that are not over, oldest first.
	Grants []Grant `json:"grants"`
	// Warnings are about entries that probably do not do what they shall.
	Warnings []NetworkWarning `json:"warnings"`
}

// EffectiveNetwork is what is in force. AllowOut, grants included, beats
// DenyOut, which beats Default.
type EffectiveNetwork struct {
	AllowOut []string `json:"allowOut"`
	DenyOut  []string `json:"denyOut"`
	Default  string   `json:"default"` // allow or deny
}

// NetworkWarning is about one entry.
type NetworkWarning struct {
	Field string `json:"field"` // allowOut, denyOut or rules
	Entry string `json:"entry"`
	// Text completes the sentence "ENTRY in FIELD ...".
	Text string `json:"text"`
}

// NetworkEdit is the body of PATCH /sandboxes/{sandboxID}/network. It changes
// entries of the document and leaves the rest of it, and grants, alone.
type NetworkEdit struct {
	// Allow are entries to be in allowOut, and not in denyOut.
	Allow []string `json:"allow,omitempty"`
	// Deny are entries to be out of allowOut, and in denyOut if they are
	// addresses. What would stay reachable all the same is refused.
	Deny []string `json:"deny,omitempty"`
}

// NewGrant is the body of POST /sandboxes/{sandboxID}/network/grants.
type NewGrant struct {
	// AllowOut are entries as in Network.
	AllowOut []string `json:"allowOut"`
	// Seconds is how long it holds, at most a day.
	Seconds int64 `json:"seconds"`
}

// Grant allows entries beside the document, for a while.
type Grant struct {
	ID        string    `json:"id"`
	AllowOut  []string  `json:"allowOut"`
	CreatedAt time.Time `json:"createdAt"`
	ExpiresAt time.Time `json:"expiresAt"`
}
