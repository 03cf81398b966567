package api

import (
	"bytes"
	"encoding/json"
)

// GuestPort is the port the guest daemon listens on inside every sandbox.
const GuestPort = 49983

// GuestVersion is the version of E2B's daemon whose surface the guest has. SDKs
// compare it to decide what they may call.
const GuestVersion = "0.6.4"

// GuestSetup is what all sandboxes of a server have in common. The guest daemon
// finds it in a file and applies it before it listens, so that a sandbox which
// waits for its owner has it behind it.
type GuestSetup struct {
	Hostname string `json:"hostname,omitempty"`
	// Nameservers become /etc/resolv.conf.
	Nameservers []string `json:"nameservers,omitempty"`
	// CABundle holds PEM certificates that the sandbox shall trust in addition.
	CABundle string `json:"caBundle,omitempty"`
	// Roots holds the PEM certificates that a sandbox trusts which has no store of
	// its own. Programs that bring their own would trust nothing but CABundle
	// otherwise: they are told to look at the store.
	Roots string `json:"-"`
}

// Encode returns the content of the setup file: a line of JSON, then Roots as
// they are, hundreds of kilobytes that every sandbox would have to parse.
func (s GuestSetup) Encode() ([]byte, error) {
	line, err := json.Marshal(s)
	return append(append(line, '\n'), s.Roots...), err
}

// DecodeGuestSetup is the reverse of Encode.
func DecodeGuestSetup(raw []byte) (s GuestSetup, err error) {
	line, roots, _ := bytes.Cut(raw, []byte("\n"))
	err = json.Unmarshal(line, &s)
	s.Roots = string(roots)
	return s, err
}

// GuestInit is the body of the guest daemon's POST /init: what a sandbox needs
// to know of itself before it runs anything. It reaches the guest over the
// sandbox's own link and is never served to the public.
type GuestInit struct {
	// AccessToken must accompany later calls; empty leaves the daemon open.
	AccessToken string            `json:"accessToken,omitempty"`
	EnvVars     map[string]string `json:"envVars,omitempty"`
	// DefaultUser and DefaultWorkdir apply to commands that name none.
	DefaultUser    string `json:"defaultUser,omitempty"`
	DefaultWorkdir string `json:"defaultWorkdir,omitempty"`
	SandboxID      string `json:"sandboxID,omitempty"`
	TemplateID     string `json:"templateID,omitempty"`
}
