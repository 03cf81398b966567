package setup

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
)

// trustStores are the files in which distributions keep the certificates that
// everything trusts. One may be a link to another.
var trustStores = []string{
	"etc/ssl/certs/ca-certificates.crt",                // Debian, Alpine, Arch
	"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora, RHEL
	"etc/pki/tls/certs/ca-bundle.crt",                  // RHEL, older
	"etc/ssl/ca-bundle.pem",                            // openSUSE
	"etc/ssl/cert.pem",                                 // Alpine, OpenSSL's default
	"var/lib/ca-certificates/ca-bundle.pem",            // openSUSE
}

const (
	// extraCA holds the added certificates alone.
	extraCA = "etc/ssl/certs/moat-extra-ca.pem"
	// sourceCA is where update-ca-certificates finds them again.
	sourceCA = "usr/local/share/ca-certificates/moat-extra-ca.crt"

	// sudoers is where sudo looks for more of its configuration, if it is there.
	sudoers = "etc/sudoers.d"

	trustBegin = "# Added by the sandbox: begin\n"
	trustEnd   = "# Added by the sandbox: end\n"
)

// trust makes the sandbox trust the certificates of a checked bundle too, and
// returns the variables for programs that do not look at the system's store. A
// sandbox without one gets roots.
func trust(f Files, bundle, roots string, log *slog.Logger) (map[string]string, error) {
	bundle = endLine(bundle)
	if err := write(f, extraCA, bundle); err != nil {
		return nil, err
	}
	if err := keepSource(f, bundle); err != nil {
		return nil, err
	}
	store, err := extendStores(f, bundle, roots)
	if err != nil {
		return nil, err
	}
	trustInJava(f, bundle, "", log)
	env := trustVariables("/"+extraCA, "/"+store)
	return env, announce(f, env)
}

// trustBelowUsr does what is left where the rest was done ahead.
func trustBelowUsr(f Files, bundle string, log *slog.Logger) error {
	if bundle == "" {
		return nil
	}
	trustInJava(f, bundle, "usr/", log)
	return keepSource(f, endLine(bundle))
}

// keepSource keeps the certificates where they are found again. A template whose
// /usr is read-only does without: only a later run of update-ca-certificates
// would need it.
func keepSource(f Files, bundle string) error {
	if err := write(f, sourceCA, bundle); err != nil && !readOnly(err) {
		return err
	}
	return nil
}

func endLine(text string) string {
	if strings.HasSuffix(text, "\n") {
		return text
	}
	return text + "\n"
}

// trustVariables are for programs that bring certificates of their own. Those
// that add to these get the extra ones, all others the system's store.
func trustVariables(extra, store string) map[string]string {
	env := map[string]string{"NODE_EXTRA_CA_CERTS": extra, "DENO_CERT": extra}
	for _, name := range []string{
		"SSL_CERT_FILE",      // OpenSSL, Go, rustls, uv
		"REQUESTS_CA_BUNDLE", // Python's requests
		"PIP_CERT", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE", "CARGO_HTTP_CAINFO",
		"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", // gRPC, but for Go and Java
	} {
		env[name] = store
	}
	return env
}

// announce tells the variables to sessions that are not the daemon's: those of
// sudo and su, and login shells.
func announce(f Files, env map[string]string) error {
	var lines, script strings.Builder
	for _, name := range slices.Sorted(maps.Keys(env)) {
		fmt.Fprintf(&lines, "%s=%s\n", name, env[name])
		fmt.Fprintf(&script, "export %s=\"${%s:-%s}\"\n", name, name, env[name])
	}
	err := write(f, "etc/profile.d/moat-extra-ca.sh", script.String())
	if err != nil {
		return err
	}
	if len(f.Find(sudoers)) > 0 {
		keep := "Defaults env_keep += \"" + strings.Join(slices.Sorted(maps.Keys(env)), " ") + "\"\n"
		if err := write(f, sudoers+"/moat-extra-ca", keep); err != nil && !readOnly(err) {
			return err
		}
	}
	before, err := f.Read("etc/environment")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read etc/environment: %w", err)
	}
	return write(f, "etc/environment", extend(string(before), lines.String()))
}

// checkBundle accepts one or more PEM certificates and nothing else.
func checkBundle(bundle string) error {
	rest, n := []byte(bundle), 0
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		n++
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("caBundle: PEM block %d is a %q, not a CERTIFICATE", n, block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("caBundle: certificate %d: %w", n, err)
		}
	}
	if n == 0 || len(bytes.TrimSpace(rest)) > 0 {
		return errors.New("caBundle: it is not made of PEM certificates only")
	}
	return nil
}

// extendStores adds the bundle to every trust store there is, or makes one with
// roots, and returns the name of the first.
func extendStores(f Files, bundle, roots string) (string, error) {
	first := ""
	done := map[string]bool{} // by what links lead to
	for _, name := range trustStores {
		store, err := f.Resolve(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && !done[store] {
			done[store] = true
			err = extendStore(f, store, bundle)
		}
		if err != nil {
			return "", fmt.Errorf("add certificates to %s: %w", name, err)
		}
		if first == "" {
			first = name
		}
	}
	if first == "" {
		first = trustStores[0]
		return first, write(f, first, extend(roots, bundle))
	}
	return first, nil
}

// extendStore adds the bundle to one trust store, which is no link.
func extendStore(f Files, name, bundle string) error {
	content, err := f.Read(name)
	if err != nil {
		return err
	}
	return f.Write(name, extend(string(content), bundle))
}

// extend returns a trust store's content with the bundle as its last section,
// instead of one that was added before.
func extend(content, bundle string) string {
	if before, after, found := strings.Cut(content, trustBegin); found {
		_, rest, _ := strings.Cut(after, trustEnd)
		content = before + rest
	}
	if content != "" {
		content = endLine(content)
	}
	return content + trustBegin + bundle + trustEnd
}
