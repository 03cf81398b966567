package guest

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/moat-sandbox/moat/api"
)

// setup does to the root directory what all sandboxes have in common, and
// returns what follows from it for the environment of commands.
func (d rootDir) setup(in api.GuestSetup, log *slog.Logger) (env map[string]string, err error) {
	if err := checkSetup(in); err != nil {
		return nil, err
	}
	if in.CABundle != "" {
		if env, err = d.trust(in.CABundle, in.Roots, log); err != nil {
			return nil, err
		}
	}
	if len(in.Nameservers) > 0 {
		if err := d.write("etc/resolv.conf", resolvConf(in.Nameservers)); err != nil {
			return nil, err
		}
	}
	if in.Hostname != "" {
		if err := d.write("etc/hostname", in.Hostname+"\n"); err != nil {
			return nil, err
		}
		if err := d.write("etc/hosts", hosts(in.Hostname)); err != nil {
			return nil, err
		}
	}
	return env, nil
}

func checkSetup(in api.GuestSetup) error {
	for _, server := range in.Nameservers {
		if _, err := netip.ParseAddr(server); err != nil {
			return fmt.Errorf("nameservers: %q is not an IP address", server)
		}
	}
	if err := checkWord("hostname", in.Hostname); err != nil {
		return err
	}
	if in.CABundle != "" {
		return checkBundle(in.CABundle)
	}
	return nil
}

// rootDir is the root directory below which system files are written.
type rootDir string

// write puts a file in place, with the directories it needs.
func (d rootDir) write(name, content string) error {
	path := filepath.Join(string(d), name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = replace(path, content)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// replace gives a name another file, not what it may point to another content:
// images ship /etc/resolv.conf as a link into a directory that does not exist
// here, and what is below a writable layer need not be copied up. Where that
// cannot be done, because something is mounted there, the content is replaced.
func replace(path, content string) error {
	temporary := path + ".moat"
	err := os.WriteFile(temporary, []byte(content), 0o644)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		_ = os.Remove(temporary) // may never have existed
		if errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EXDEV) {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
	}
	return err
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
