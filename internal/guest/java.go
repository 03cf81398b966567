package guest

import (
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/moat-sandbox/moat/internal/guest/keystore"
)

// javaStores are where Java keeps what it trusts; most are links to the first.
var javaStores = []string{
	"etc/ssl/certs/java/cacerts",                          // Debian
	"etc/pki/java/cacerts",                                // Fedora, RHEL
	"usr/lib/jvm/*/lib/security/cacerts",                  // most distributions
	"usr/lib/jvm/*/jre/lib/security/cacerts",              // Java 8
	"opt/java/*/lib/security/cacerts",                     // Temurin's images
	"opt/*/lib/security/cacerts",                          // unpacked by hand
	"usr/local/openjdk-*/lib/security/cacerts",            // OpenJDK's images
	"usr/java/*/lib/security/cacerts",                     // Oracle's
	"root/.sdkman/candidates/java/*/lib/security/cacerts", // SDKMAN
	"home/*/.sdkman/candidates/java/*/lib/security/cacerts",
}

// trustInJava adds certificates to Java's stores where there are any. It knows no
// variables that everything heeds and nothing prints. A store that cannot be
// changed is no reason to refuse the sandbox: only Java will miss it.
func (d rootDir) trustInJava(bundle string, log *slog.Logger) {
	var certificates [][]byte
	for rest := []byte(bundle); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		certificates = append(certificates, block.Bytes)
	}
	done := map[string]bool{}
	for _, pattern := range javaStores {
		for _, link := range find(string(d), pattern) {
			path, err := filepath.EvalSymlinks(link)
			if err != nil || done[path] {
				continue
			}
			done[path] = true
			if err := extendKeystore(path, certificates); err != nil && !readOnly(err) {
				log.Warn("Java will not trust the extra certificates", "store", path, "error", err)
			}
		}
	}
}

// find lists what there is below dir by a pattern, in which "*" stands for the
// rest of a directory's name. Glob would read every directory on the way, and
// system calls are what a sandbox's start consists of.
func find(dir, pattern string) (found []string) {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		path := filepath.Join(dir, pattern)
		if _, err := os.Lstat(path); err == nil {
			found = append(found, path)
		}
		return found
	}
	above, prefix := filepath.Split(head)
	dir = filepath.Join(dir, above)
	entries, _ := os.ReadDir(dir) // where there is none, there is nothing in it
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			found = append(found, find(filepath.Join(dir, e.Name()), rest)...)
		}
	}
	return found
}

func extendKeystore(path string, certificates [][]byte) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if raw, err = keystore.Add(raw, certificates); err != nil {
		return err
	}
	return replace(path, string(raw))
}
