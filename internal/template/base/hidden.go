package base

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Hidden is something below the host's /usr that no sandbox may see.
type Hidden struct {
	Path   string // relative to /usr
	Reason string
}

// neverShown are places below /usr that hold this machine's own configuration
// or data rather than programs.
var neverShown = map[string]string{
	"etc":       "configuration of this machine",
	"local/etc": "configuration of this machine",
	"var":       "data of this machine",
	"local/var": "data of this machine",
	"home":      "home directories",
	"root":      "home directory",
}

// credentialNames are files and directories in which tools keep credentials.
var credentialNames = map[string]bool{
	".aws": true, ".azure": true, ".docker": true, ".gnupg": true, ".kube": true, ".ssh": true,
	".boto": true, ".dockercfg": true, ".env": true, ".git-credentials": true, ".htpasswd": true,
	".my.cnf": true, ".netrc": true, ".npmrc": true, ".pgpass": true, ".pypirc": true, ".s3cfg": true,
	".vault-token": true,
}

// keySuffixes mark files that are worth a look for a private key.
var keySuffixes = []string{".pem", ".key", "_rsa", "_dsa", "_ecdsa", "_ed25519"}

// keyStores are formats that hold private keys and cannot be looked into.
var keyStores = []string{".p12", ".pfx", ".keytab", ".kdbx"}

var privateKey = []byte("PRIVATE KEY-----")

// sniffBytes is how much of a file is searched for a private key.
const sniffBytes = 64 << 10

// findHidden lists what must not be shown of the directory usr, in walking
// order. A directory stands for everything below it.
func findHidden(ctx context.Context, usr string) ([]Hidden, error) {
	// The overlay shows what lies under a mount, which cannot be looked at.
	covered, err := mountPoints(usr)
	if err != nil {
		return nil, fmt.Errorf("look for secrets in %s: %w", usr, err)
	}
	var found []Hidden
	err = filepath.WalkDir(usr, func(name string, d fs.DirEntry, err error) error {
		if name == usr {
			return err
		}
		if err == nil {
			err = ctx.Err()
		}
		var reason string
		switch {
		case err != nil:
		case covered[name]:
			reason = "another file system is mounted there"
		default:
			reason, err = look(usr, name, d)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone since its directory was read
		}
		if err != nil || reason == "" {
			return err
		}
		found = append(found, Hidden{Path: relative(usr, name), Reason: reason})
		return skip(d)
	})
	if err != nil {
		return nil, fmt.Errorf("look for secrets in %s: %w", usr, err)
	}
	return found, nil
}

func look(usr, name string, d fs.DirEntry) (string, error) {
	info, err := d.Info()
	if err != nil {
		return "", err
	}
	return whyHidden(name, relative(usr, name), info)
}

// relative returns name, which lies below dir, relative to it.
func relative(dir, name string) string {
	return strings.TrimPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

func skip(d fs.DirEntry) error {
	if d.IsDir() {
		return fs.SkipDir
	}
	return nil
}

// whyHidden says why the file name, which is rel below /usr, must not be
// shown; "" means that it may.
func whyHidden(name, rel string, info fs.FileInfo) (string, error) {
	if reason, ok := neverShown[rel]; ok {
		return reason, nil
	}
	base := path.Base(rel)
	if credentialNames[base] {
		return "a place for credentials", nil
	}
	perm := info.Mode().Perm()
	switch {
	case info.IsDir():
		if perm&0o005 != 0o005 {
			return "directory not open to everyone", nil
		}
		return "", nil
	case info.Mode().Type() == fs.ModeSymlink:
		return "", nil
	case !info.Mode().IsRegular():
		return "neither file nor directory", nil
	case perm&0o004 == 0:
		// Some distributions let everyone run a program that they may not read.
		if perm&0o001 != 0 && isProgram(name) {
			return "", nil
		}
		return "file not readable by everyone", nil
	case hasSuffix(base, keyStores):
		return "key store", nil
	case hasSuffix(base, keySuffixes):
		return sniffKey(name)
	}
	return "", nil
}

func hasSuffix(name string, suffixes []string) bool {
	for _, s := range suffixes {
		if strings.HasSuffix(name, s) || s[0] == '_' && name == "id"+s {
			return true
		}
	}
	return false
}

func sniffKey(name string) (string, error) {
	head, err := readHead(name, sniffBytes)
	if err != nil {
		return "", err
	}
	if bytes.Contains(head, privateKey) {
		return "private key", nil
	}
	return "", nil
}

func isProgram(name string) bool {
	head, err := readHead(name, int64(len(elf.ELFMAG)))
	return err == nil && string(head) == elf.ELFMAG
}

func readHead(name string, n int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, n))
}
