package api

import "time"

// The routes below /operator/ exist only on the operator's unix socket. A
// request there needs no API key; without one it acts for DefaultTeam.

// DefaultTeam is the team of the first API key and of the operator.
const DefaultTeam = "default"

// ValidTeam reports whether a team may be called so: up to 63 letters, digits,
// dots, dashes and underscores, the first a letter or a digit.
func ValidTeam(name string) bool {
	for i, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '-' || c == '_'):
		default:
			return false
		}
	}
	return name != "" && len(name) <= 63
}

// NewKey is the body of POST /operator/keys.
type NewKey struct {
	// Name is for people; it may be empty and need not be unique.
	Name string `json:"name,omitempty"`
	// Team is whose sandboxes the key is for; empty makes a team of its own.
	Team string `json:"team,omitempty"`
}

// Key describes an API key without revealing it.
type Key struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Team string `json:"team"`
	// Prefix is how the key begins, to recognise it by.
	Prefix    string    `json:"prefix"`
	CreatedAt time.Time `json:"createdAt"`
}

// CreatedKey is the answer to POST /operator/keys: the only time that the key
// itself is shown.
type CreatedKey struct {
	Key
	// Secret is the API key: "e2b_" and 40 hex digits.
	Secret string `json:"key"`
}

// NewTemplate is the body of POST /operator/templates. Exactly one of Dir, Tar
// and Image is set.
type NewTemplate struct {
	// Names are the aliases to start it by; one that belongs to another
	// template moves to this one.
	Names []string `json:"names"`
	// Dir and Tar are absolute paths on the server's machine.
	Dir string `json:"dir,omitempty"`
	Tar string `json:"tar,omitempty"`
	// Image is an OCI image reference.
	Image string `json:"image,omitempty"`
	// Insecure lets the image's registry be plain HTTP or show a certificate
	// that nobody vouches for.
	Insecure bool `json:"insecure,omitzero"`
}

// Template describes a template to the operator.
type Template struct {
	ID    string   `json:"id"`
	Names []string `json:"names"`
	// Source says in words what it was made from.
	Source string `json:"source"`
	// SizeBytes is the size of its image; 0 where it is the host's own files.
	SizeBytes  int64     `json:"sizeBytes"`
	CPUCount   int       `json:"cpuCount"`
	MemoryMB   int       `json:"memoryMB"`
	DiskSizeMB int       `json:"diskSizeMB"`
	CreatedAt  time.Time `json:"createdAt"`
}
