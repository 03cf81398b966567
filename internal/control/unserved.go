package control

import (
	"maps"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// unserved is a field of E2B's or Cube's API whose meaning this server cannot
// give yet. It is refused rather than overlooked, unless it has a value that
// asks for what happens anyway; null always does.
type unserved struct {
	field string
	// inert are the accepted values, as canonical JSON.
	inert []string
	// what the field would do, for the refusal.
	what string
}

var createUnserved = []unserved{
	{"autoPause", []string{`false`}, "pausing at the end of the timeout"},
	{"autoPauseMemory", []string{`true`}, "pausing at the end of the timeout"},
	{"autoResume", []string{`false`, `{}`, `{"enabled":false}`, `{"enabled":null}`}, "resuming on request"},
	{"lifecycle", []string{
		`{}`, `{"onTimeout":"kill"}`, `{"autoResume":false}`, `{"autoResume":false,"onTimeout":"kill"}`,
	}, "pausing and resuming"},
	{"iam", []string{`{}`, `{"tokens":{}}`, `{"tokens":null}`}, "issuing identity tokens"},
	{"volumeMounts", []string{`[]`}, "mounting volumes"},
	{"mcp", nil, "running MCP servers"},
	{"distributionScope", []string{`[]`, `""`}, "choosing a node"},
}

// refuseUnserved looks through the members that nobody has read. prefix goes
// before the field's name. Values are never repeated: they may be secrets.
func refuseUnserved(prefix string, rest map[string]jsontext.Value, table []unserved) error {
	for _, u := range table {
		value, given := rest[u.field]
		if !given || isInert(value, u.inert) {
			continue
		}
		if u.inert == nil {
			return badRequest("%s%s: %s is not available yet: leave it out", prefix, u.field, u.what)
		}
		return badRequest("%s%s: %s is not available yet: leave it out or send %s", prefix, u.field, u.what, u.inert[0])
	}
	return nil
}

func isInert(value jsontext.Value, inert []string) bool {
	if value.Kind() == 'n' {
		return true
	}
	canonical := value.Clone()
	return canonical.Canonicalize() == nil && slices.Contains(inert, string(canonical))
}

// refuseMisplaced finds network settings beside "network" instead of in it,
// where they would do nothing.
func refuseMisplaced(rest map[string]jsontext.Value) error {
	fields := []string{
		"allowOut", "denyOut", "allow_out", "deny_out",
		"allowPublicTraffic", "allow_public_traffic", "maskRequestHost", "mask_request_host", "httpsPorts", "ports",
		"rules", "egressProxy", "dns",
	}
	for _, field := range fields {
		if value, given := rest[field]; given && value.Kind() != 'n' {
			return badRequest("%s has no effect here: it belongs inside network", field)
		}
	}
	return nil
}

// refuseUnknown is for objects in which an overlooked member could leave a
// sandbox open that was meant to be closed.
func refuseUnknown(prefix string, rest map[string]jsontext.Value) error {
	for _, field := range slices.Sorted(maps.Keys(rest)) {
		if rest[field].Kind() != 'n' {
			return badRequest("%s%s is not a setting here", prefix, clip(field))
		}
	}
	return nil
}
