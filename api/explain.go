package api

import "time"

// Question is the body of POST /sandboxes/{sandboxID}/network/explain: a
// connection that the sandbox might make, a document that it might get, or
// both. Nothing is sent to find the answer.
type Question struct {
	// URL stands for Host, or Address, and Port. Rules about requests are asked
	// too.
	URL string `json:"url,omitempty"`
	// Method is the one of the request for URL; absent means GET.
	Method string `json:"method,omitempty"`
	// Host is the name that the connection is for. Without Address the address
	// that the name has is taken for one that no entry names.
	Host string `json:"host,omitempty"`
	// Address is the IPv4 or IPv6 address to contact, with URL too if there is a
	// name in that. Where rules decide about the host it is taken for one that
	// the name has: requests to those never go to an address of the sandbox's
	// choice.
	Address string `json:"address,omitempty"`
	// Port is 0 for ICMP and DNS.
	Port int64 `json:"port,omitzero"`
	// Protocol is tcp, udp, icmp or dns; absent means tcp. With dns the question
	// is whether Host resolves.
	Protocol string `json:"protocol,omitempty"`
	// Candidate is a document that could replace the present one.
	Candidate *NetworkUpdate `json:"candidate,omitzero"`
}

// Explanation says what becomes of a flow, and why.
type Explanation struct {
	// Decision is absent where no flow was asked about.
	Decision
	// Generation numbers the policy that was asked.
	Generation uint64 `json:"generation"`
	// Grant is the one that allows the flow, where it is not the document.
	Grant *Grant `json:"grant,omitzero"`
	// Candidate is the decision under the candidate.
	Candidate *Decision `json:"candidate,omitzero"`
	// Replay is what the candidate changes for what was recorded.
	Replay *Replay `json:"replay,omitzero"`
}

// Decision is one answer about one flow.
type Decision struct {
	Verdict string `json:"verdict,omitempty"` // allow or deny
	// Rule is what decided: never, allowOut, denyOut, rules, default, name or
	// protocol.
	Rule string `json:"rule,omitempty"`
	// Entry is the entry of the list that matched, as the caller wrote it, or the
	// rule.
	Entry string `json:"entry,omitempty"`
	// Reason says it in a sentence.
	Reason string `json:"reason,omitempty"`
	// Change is what a rule does to the request that URL stands for.
	Change *RequestChange `json:"change,omitzero"`
}

// RequestChange is what a rule does to requests that it allows. There are no
// values in it.
type RequestChange struct {
	// Rule is the rule's name, in E2B's shape its host.
	Rule string `json:"rule"`
	// Headers are those that are set.
	Headers []string `json:"headers,omitempty"`
	// StripCredentials says that what the sandbox sends to authenticate itself is
	// removed.
	StripCredentials bool `json:"stripCredentials,omitempty"`
}

// Replay holds a candidate against the records that the server still has of
// flows that the sandbox began.
type Replay struct {
	// Records is how many were looked at.
	Records int `json:"records"`
	// Refused were allowed and would not be, Allowed were refused by the policy
	// and would not be. Each flow is there once, the most frequent first.
	Refused []ReplayedFlow `json:"refused"`
	Allowed []ReplayedFlow `json:"allowed"`
	// Omitted counts further flows of both kinds.
	Omitted int `json:"omitted"`
}

// ReplayedFlow is a flow that was recorded once or more often.
type ReplayedFlow struct {
	Protocol string    `json:"protocol"`
	Name     string    `json:"name,omitempty"`
	Address  string    `json:"address,omitempty"` // absent where there is a name
	Port     uint16    `json:"port,omitempty"`
	Count    int       `json:"count"`
	Last     time.Time `json:"last"`
	// Decision is the candidate's.
	Decision
}
