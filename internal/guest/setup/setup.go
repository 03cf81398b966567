// Package setup does to a root file system what all sandboxes of a server have
// in common: names, name servers, and certificates to trust. The daemon does it
// before it listens. For a template that is made on this machine most of it is
// done as it is made, and the daemon finds it.
package setup

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"strings"
	"syscall"

	"github.com/moat-sandbox/moat/api"
)

// Files is a root file system. Names are relative to it.
type Files interface {
	// Find lists what there is by a pattern, in which "*" stands for the rest of
	// a directory's name.
	Find(pattern string) []string
	// Resolve follows links to the name of the file that a name means.
	Resolve(name string) (string, error)
	// Read returns the content of a file that is no link.
	Read(name string) ([]byte, error)
	// Write gives a name a new file, readable to all, with the directories it
	// needs. What cannot be changed is fs.ErrPermission or syscall.EROFS.
	Write(name, content string) error
}

// recordName is where is written down what was done ahead.
const recordName = "etc/moat-setup.json"

// record says which setup was done ahead, and what follows from it.
type record struct {
	Sum string            `json:"sum"`
	Env map[string]string `json:"env"`
}

// Do sets up the root of a sandbox, and returns what follows from it for the
// environment of commands.
func Do(f Files, in api.GuestSetup, log *slog.Logger) (map[string]string, error) {
	if env, ok := done(f, in); ok {
		return env, trustBelowUsr(f, in.CABundle, log)
	}
	return do(f, in, log)
}

// DoAhead sets up the root of a template, all but what is below usr.
func DoAhead(f Files, in api.GuestSetup, log *slog.Logger) error {
	env, err := do(f, in, log)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(record{Sum: sum(in), Env: env})
	if err != nil {
		return err
	}
	return write(f, recordName, string(raw))
}

// done tells whether this setup was done ahead. A template that lies about it
// harms its own sandboxes only.
func done(f Files, in api.GuestSetup) (env map[string]string, ok bool) {
	raw, err := f.Read(recordName)
	if err != nil {
		return nil, false
	}
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, false
	}
	return r.Env, r.Sum == sum(in)
}

// sum tells setups apart. Roots are of no interest: a root that was set up has
// some.
func sum(in api.GuestSetup) string {
	all := sha256.New()
	fmt.Fprintf(all, "%q %q %q", in.Hostname, in.Nameservers, in.CABundle)
	return hex.EncodeToString(all.Sum(nil))
}

func do(f Files, in api.GuestSetup, log *slog.Logger) (env map[string]string, err error) {
	if err := check(in); err != nil {
		return nil, err
	}
	if in.CABundle != "" {
		if env, err = trust(f, in.CABundle, in.Roots, log); err != nil {
			return nil, err
		}
	}
	if len(in.Nameservers) > 0 {
		if err := write(f, "etc/resolv.conf", resolvConf(in.Nameservers)); err != nil {
			return nil, err
		}
	}
	if in.Hostname != "" {
		if err := write(f, "etc/hostname", in.Hostname+"\n"); err != nil {
			return nil, err
		}
		if err := write(f, "etc/hosts", hosts(in.Hostname)); err != nil {
			return nil, err
		}
	}
	return env, nil
}

func check(in api.GuestSetup) error {
	for _, server := range in.Nameservers {
		if _, err := netip.ParseAddr(server); err != nil {
			return fmt.Errorf("nameservers: %q is not an IP address", server)
		}
	}
	if err := CheckWord("hostname", in.Hostname); err != nil {
		return err
	}
	if in.CABundle != "" {
		return checkBundle(in.CABundle)
	}
	return nil
}

// CheckWord refuses what would be more than one word in a file.
func CheckWord(field, value string) error {
	if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("%s: %q is not a single printable word", field, value)
	}
	return nil
}

// write is Write with an error that names the file.
func write(f Files, name, content string) error {
	if err := f.Write(name, content); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// readOnly says that a part of a template cannot be changed.
func readOnly(err error) bool {
	return errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission)
}

func resolvConf(servers []string) string {
	var b strings.Builder
	for _, server := range servers {
		b.WriteString("nameserver " + server + "\n")
	}
	return b.String()
}

// hosts is the content of /etc/hosts. The sandbox's own name is a loopback
// address, so that it resolves whatever the policy says of names.
func hosts(hostname string) string {
	return "127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"127.0.1.1\t" + hostname + "\n"
}
