// Package api holds the wire types of the HTTP API: E2B's REST API as this
// server speaks it, and the operator's additions. openapi.yaml beside it is
// the same in words; a test keeps both and the served routes in agreement.
//
// Optional fields are omitted, never null, unless their comment says
// otherwise: E2B's clients copy objects without looking for null.
package api

// Names of headers.
const (
	// HeaderAPIKey carries the caller's API key. "Authorization: Bearer" is
	// taken as well.
	HeaderAPIKey = "X-API-Key"
	// HeaderNextToken is the token of the next page; absent on the last one.
	HeaderNextToken = "X-Next-Token"
	// HeaderTotalRunning counts the running sandboxes that match a list's
	// filters, over all pages. Absent when the list is not about running ones.
	HeaderTotalRunning = "X-Total-Running"
	// HeaderNetworkGeneration numbers the network document that is in force
	// after an update, as the data plane confirmed it.
	HeaderNetworkGeneration = "Moat-Network-Generation"
	// HeaderFlowsCut counts the live flows that an update ended because the new
	// document denies them.
	HeaderFlowsCut = "Moat-Flows-Cut"
)

// ClientID is the constant that E2B's clients demand in every sandbox object.
const ClientID = "6532622b"

// Error is the body of every answer with a status of 400 or more.
type Error struct {
	// Code is the HTTP status again: E2B's clients read it here.
	Code    int    `json:"code"`
	Message string `json:"message"`
	// ErrorCode names the cause for programs, where one is defined.
	ErrorCode string `json:"error_code,omitempty"`
}

// Values of Error.ErrorCode.
const (
	// CodeCapacity: no room for another sandbox now; worth trying again.
	CodeCapacity = "sandbox_capacity_unavailable"
	// CodeTimeout: the sandbox was not ready in time.
	CodeTimeout = "sandbox_placement_timeout"
	// CodeCreateFailed: the sandbox could not be made.
	CodeCreateFailed = "sandbox_create_failed"
	// CodeInternal: a fault of the server; the message holds a request id that
	// the server's log explains.
	CodeInternal = "internal_server_error"
)

// Health is the body of GET /health.
type Health struct {
	Status string `json:"status"` // "ok"
	// Sandboxes counts the running sandboxes of all teams.
	Sandboxes int `json:"sandboxes"`
}
