package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/internal/app"
)

func (c *cli) caCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Print the certificate of the server's own authority",
		Long: "Print, in PEM, the certificate of the authority that 'moat serve --tls-ca' takes its\n" +
			"certificates from. Who trusts it trusts it for names below the domain and for loopback\n" +
			"addresses, and for nothing else. It is made at the first call, here or by the server.\n" +
			"Takes the settings of 'moat serve'.",
		Example: "  moat ca > moat-ca.pem\n  curl --cacert moat-ca.pem https://api.moat.localhost:8443/health\n  NODE_EXTRA_CA_CERTS=moat-ca.pem node program.js",
		Args:    cobra.NoArgs,
	}
	s := newSettings(cmd.Flags())
	cmd.RunE = func(*cobra.Command, []string) error {
		config, err := c.configure(s)
		if err != nil {
			return err
		}
		pem, err := app.CA(config)
		if err != nil {
			return err
		}
		_, err = c.stdout.Write(pem)
		return err
	}
	return cmd
}

// checkTLS sees to it that HTTPS has one source of certificates, and that they
// are not asked for in vain.
func (s *settings) checkTLS() error {
	sources := []struct {
		name  string
		given bool
	}{{"--tls-cert", s.TLSCert != ""}, {"--tls-key", s.TLSKey != ""}, {"--tls-ca", s.TLSOwnCA}, {"--acme", s.ACME.Directory != ""}}
	files, others := 0, 0
	for i, source := range sources {
		switch {
		case source.given && s.HTTPS == "":
			return fmt.Errorf("%s: needs --https", source.name)
		case source.given && i < 2:
			files++
		case source.given:
			others++
		}
	}
	switch {
	case s.HTTPS != "" && files+others == 0:
		return fmt.Errorf("--https %s: needs --tls-cert and --tls-key, --tls-ca or --acme", s.HTTPS)
	case others > 1 || others == 1 && files > 0:
		return errors.New("--tls-cert with --tls-key, --tls-ca and --acme exclude each other")
	case files == 1 && s.TLSKey == "":
		return fmt.Errorf("--tls-cert %s: needs --tls-key", s.TLSCert)
	case files == 1:
		return fmt.Errorf("--tls-key %s: needs --tls-cert", s.TLSKey)
	case files == 2:
		if _, err := tls.LoadX509KeyPair(s.TLSCert, s.TLSKey); err != nil {
			return fmt.Errorf("--tls-cert %s with --tls-key %s: %w", s.TLSCert, s.TLSKey, err)
		}
	}
	return s.checkACME()
}

func (s *settings) checkACME() error {
	switch {
	case s.ACME.Directory == "" && s.ACME.Email != "":
		return errors.New("--acme-email: needs --acme")
	case s.ACME.Directory == "" && s.ACME.Hook != "":
		return errors.New("--acme-hook: needs --acme")
	case s.ACME.Directory == "":
		return nil
	case s.Domain == "localhost" || strings.HasSuffix(hostname(s.Domain), ".localhost"):
		return fmt.Errorf("--acme: no authority vouches for %s: --domain must be a name of yours", hostname(s.Domain))
	case s.ACME.Hook == "" && s.HTTP == "":
		return errors.New("--acme: needs --http, reached as port 80 from outside, or --acme-hook")
	case s.ACME.Hook == "":
		return nil
	}
	path, err := filepath.Abs(s.ACME.Hook)
	if err != nil {
		return fmt.Errorf("--acme-hook: %w", err)
	}
	s.ACME.Hook = path
	info, err := os.Stat(path)
	if err == nil && (!info.Mode().IsRegular() || info.Mode()&0o111 == 0) {
		err = fmt.Errorf("%s is not a program", path)
	}
	if err != nil {
		return fmt.Errorf("--acme-hook: %w", err)
	}
	return nil
}

// hostname is a domain without its port.
func hostname(domain string) string {
	name, _, _ := strings.Cut(domain, ":")
	return name
}

// parseDirectory takes the URL of an ACME directory, and "" for none.
func parseDirectory(text string) (string, error) {
	u, err := url.Parse(text)
	if text != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
		return "", fmt.Errorf("%q is not an https URL", text)
	}
	return text, nil
}
