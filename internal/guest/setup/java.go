package setup

import (
	"encoding/pem"
	"log/slog"
	"strings"

	"github.com/moat-sandbox/moat/internal/guest/setup/keystore"
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

// trustInJava adds certificates to Java's stores below a directory where there
// are any. It knows no variables that everything heeds and nothing prints. A
// store that cannot be changed is no reason to refuse the sandbox: only Java
// will miss it.
func trustInJava(f Files, bundle, below string, log *slog.Logger) {
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
		if !strings.HasPrefix(pattern, below) {
			continue
		}
		for _, link := range f.Find(pattern) {
			store, err := f.Resolve(link)
			if err != nil || done[store] || !strings.HasPrefix(store, below) {
				continue
			}
			done[store] = true
			if err := extendKeystore(f, store, certificates); err != nil && !readOnly(err) {
				log.Warn("Java will not trust the extra certificates", "store", store, "error", err)
			}
		}
	}
}

func extendKeystore(f Files, name string, certificates [][]byte) error {
	raw, err := f.Read(name)
	if err != nil {
		return err
	}
	if raw, err = keystore.Add(raw, certificates); err != nil {
		return err
	}
	return f.Write(name, string(raw))
}
