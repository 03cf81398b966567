package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// rootDir is the root directory below which system files are written.
type rootDir string

// write puts a file in place. It replaces the name, not what it may point to:
// images ship /etc/resolv.conf as a link into a directory that does not exist
// here. Where that cannot be done, because something is mounted there, the
// content is replaced.
func (d rootDir) write(name, content string) error {
	path := filepath.Join(string(d), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
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
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
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
