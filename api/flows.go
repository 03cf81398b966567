package api

import "time"

// FlowRecord is one flow, request or DNS query of a sandbox, allowed or refused.
// A refused one is recorded at once, all others when they have ended.
type FlowRecord struct {
	// Cursor is the record's place in the log.
	Cursor uint64    `json:"cursor"`
	Time   time.Time `json:"time"` // when it began
	// Decision names the decision. The sandbox is shown it with a refusal.
	Decision  string `json:"decision"`
	Direction string `json:"direction"` // out or in
	// Protocol is tcp, udp, icmp, tls, http or dns: the outermost that was
	// looked into.
	Protocol string `json:"protocol"`
	// Address was contacted, or for a refused flow would have been. Of a flow
	// towards the sandbox it is where it came from, and Port the sandbox's.
	Address string `json:"address,omitempty"`
	Port    uint16 `json:"port,omitempty"`
	// Name is what was judged; absent when the address alone was.
	Name    string `json:"name,omitempty"`
	Verdict string `json:"verdict"` // allow or deny
	// Rule is the part of the policy, or of what enforces it, that decided;
	// Entry is what matched there; Reason says it in a sentence.
	Rule   string `json:"rule,omitempty"`
	Entry  string `json:"entry,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Generation numbers the policy that decided.
	Generation uint64 `json:"generation"`
	// BytesUp were sent by who began the flow, BytesDown by the other side.
	BytesUp    uint64  `json:"bytesUp"`
	BytesDown  uint64  `json:"bytesDown"`
	DurationMs float64 `json:"durationMs"`
	// Method, Path and Status are known for HTTP, and Method for DNS, where it
	// is the type of the question. Path has no query string.
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"`
	Status int    `json:"status,omitempty"`
	// Intercepted says that TLS was answered in the place of the server.
	Intercepted bool `json:"intercepted,omitempty"`
	// Matched is the rule about requests that decided, if one did.
	Matched string `json:"matched,omitempty"`
	// Injected are the names of the headers that were set.
	Injected []string `json:"injected,omitempty"`
}

// FlowPage is the answer to GET /sandboxes/{sandboxID}/network/flows.
type FlowPage struct {
	Flows []FlowRecord `json:"flows"` // oldest first
	// Next is the cursor after which to go on.
	Next uint64 `json:"next"`
	// Lost counts records that made room for newer ones before they were read,
	// those that no filter wanted too. 1 may stand for more.
	Lost uint64 `json:"lost"`
}

// Names of the events of a followed log. The id of an EventFlow is its cursor.
const (
	EventFlow = "flow" // a FlowRecord
	EventLost = "lost" // a FlowsLost
	EventEnd  = "end"  // a FlowsEnd; nothing comes after it
)

// FlowsLost says that records are missing at this place.
type FlowsLost struct {
	// Lost is as in FlowPage.
	Lost uint64 `json:"lost"`
}

// FlowsEnd says why nothing more comes.
type FlowsEnd struct {
	Reason string `json:"reason"`
}
