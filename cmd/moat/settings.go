package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/moat-sandbox/moat/internal/app"
	"github.com/moat-sandbox/moat/internal/secret"
)

// defaultDataDir is where the server keeps its state, and where commands look
// for its socket.
const defaultDataDir = "/var/lib/moat"

// defaultHTTP spells "moat" on a telephone's keys.
const defaultHTTP = "127.0.0.1:6628"

// settings are what `moat serve` and `moat doctor` are told, from four layers:
// flags, then MOAT_ variables, then the configuration file, then the defaults.
type settings struct {
	app.Config
	flags     *pflag.FlagSet
	file      string
	anywhere  bool // --allow-anonymous-anywhere
	logLevel  slog.Level
	logFormat string
}

// newSettings declares every setting as a flag.
func newSettings(flags *pflag.FlagSet) *settings {
	s := &settings{flags: flags}
	flags.StringVar(&s.file, "config", "", "read settings from this YAML `file`; its keys are the flags' names")

	add := func(v pflag.Value, name, usage string) { flags.Var(v, name, usage) }
	text := func(to *string, name, preset, usage string, parse func(string) (string, error)) {
		add(newValue(to, kindText, preset, parse), name, usage)
	}
	number := func(to *int, name, preset, usage string, least int) {
		add(newValue(to, kindInt, preset, atLeast(least)), name, usage)
	}

	text(&s.DataDir, "data-dir", defaultDataDir, "`directory` for all state and the operator's socket", parseText)
	text(&s.Domain, "domain", "", "`name` below which sandboxes are reached as PORT-ID.NAME (default: moat.localhost and the port)", parseDomain)
	text(&s.HTTP, "http", defaultHTTP, "`address` for plain HTTP; empty for none", parseListen)
	text(&s.HTTPS, "https", "", "`address` for HTTPS; needs --tls-cert and --tls-key, --tls-ca or --acme", parseListen)
	text(&s.TLSCert, "tls-cert", "", "PEM `file` with the certificate chain for HTTPS; read again when it changes", parseText)
	text(&s.TLSKey, "tls-key", "", "PEM `file` with the key of --tls-cert", parseText)
	flags.BoolVar(&s.TLSOwnCA, "tls-ca", false, "take certificates from an authority of the server's own, for trying out; see 'moat ca'")
	text(&s.ACME.Directory, "acme", "", "take the certificate from the ACME authority with this directory `URL`", parseDirectory)
	text(&s.ACME.Email, "acme-email", "", "`address` for the authority's messages", parseText)
	text(&s.ACME.Hook, "acme-hook", "", "`program` that sets DNS records, for a certificate that covers all sandboxes", parseText)
	text(&s.ExtraCA, "extra-ca", "", "PEM `file` of authorities to trust upstream and in every sandbox", parseText)
	add(&list[netip.AddrPort]{to: &s.UpstreamDNS, parse: parseResolver}, "upstream-dns",
		"`resolvers` to ask, with commas between (default: the machine's own)")
	add(&list[netip.Prefix]{to: &s.AllowRanges, parse: parseRange}, "allow-range",
		"never-reachable `CIDRs` that policies may allow after all; repeatable")
	s.declareIngress(add, number)
	text(&s.Anonymous, "allow-anonymous", "", "`team` that requests without an API key act for, as CubeSandbox's clients send them; none unless given", parseTeam)
	flags.BoolVar(&s.anywhere, "allow-anonymous-anywhere", false, "let --allow-anonymous hold where other machines can reach the server")
	flags.BoolVar(&s.KillOnExit, "kill-on-exit", false, "remove all sandboxes when the server stops")
	text(&s.Isolation, "isolation", app.GVisor, "least `kind` of isolation to start with: gvisor or namespaces", oneOf(app.GVisor, app.Namespaces))
	number(&s.Pool, "pool", "4", "booted sandboxes that wait for a create; 0 boots each on demand", 0)
	number(&s.MaxSandboxes, "max-sandboxes", "256", "sandboxes that may live at once on this machine", 1)
	number(&s.TeamLimit, "team-limit", "100", "sandboxes that may live at once for one team", 1)
	add(newValue(&s.MaxTimeout, kindText, "24h", parseLifetime), "max-timeout", "longest `duration` a sandbox may be given")
	add(newValue(&s.logLevel, kindText, "info", parseLevel), "log-level", "least `level` to log: debug, info, warn or error")
	text(&s.logFormat, "log-format", "text", "`format` of log lines: text or json", oneOf("text", "json"))
	return s
}

// load fills in what no flag gave, from the environment and the file, and
// checks the whole. It returns what deserves a warning.
func (s *settings) load(env map[string]string) (warnings []string, err error) {
	given := make(map[string]bool)
	s.flags.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	if err := s.fromEnv(env, given); err != nil {
		return nil, err
	}
	if s.file != "" {
		if err := s.fromFile(s.file, given); err != nil {
			return nil, err
		}
	}
	if s.APIKey, err = presetKey(env[keyVariable]); err != nil {
		return nil, err
	}
	return s.warnings(env), s.check()
}

// variable is the environment variable of a flag.
func variable(flag string) string {
	return "MOAT_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func (s *settings) fromEnv(env map[string]string, given map[string]bool) error {
	var errs []error
	s.flags.VisitAll(func(f *pflag.Flag) {
		text, ok := env[variable(f.Name)]
		if !ok || given[f.Name] || f.Name == "help" {
			return
		}
		given[f.Name] = true
		if err := f.Value.Set(text); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", variable(f.Name), err))
		}
	})
	return errors.Join(errs...)
}

// warnings names variables that look like settings and are none, and a weak key.
func (s *settings) warnings(env map[string]string) []string {
	var found []string
	for name := range env {
		rest, ok := strings.CutPrefix(name, "MOAT_")
		flag := strings.ToLower(strings.ReplaceAll(rest, "_", "-"))
		if ok && name != keyVariable && s.flags.Lookup(flag) == nil {
			found = append(found, name+": no such setting")
		}
	}
	if key := s.APIKey.Reveal(); key != "" && len(key) < len("e2b_")+strongDigits {
		found = append(found, keyVariable+": so short a key can be guessed")
	}
	if s.anywhere {
		found = append(found, "allow-anonymous-anywhere: whoever reaches the server acts for team "+s.Anonymous)
	}
	slices.Sort(found)
	return found
}

// keyVariable presets the first API key. It is no flag and no key of the file:
// command lines are visible to everyone on the machine, and files get copied.
const keyVariable = "MOAT_API_KEY"

// strongDigits is how many hex digits make a key that nobody guesses.
const strongDigits = 32

// presetKey checks the first API key's form, the one that every release of the
// SDKs accepts. The value stays out of the error.
func presetKey(key string) (secret.String, error) {
	if key == "" {
		return secret.String{}, nil
	}
	digits, ok := strings.CutPrefix(key, "e2b_")
	if !ok || digits == "" || strings.Trim(digits, "0123456789abcdef") != "" {
		return secret.String{}, fmt.Errorf("%s: want e2b_ and lower-case hex digits", keyVariable)
	}
	return secret.New(key), nil
}

// check judges the settings together, and the files that they name.
func (s *settings) check() error {
	if s.DataDir == "" {
		return errors.New("--data-dir: must not be empty")
	}
	dir, err := filepath.Abs(s.DataDir)
	if err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	s.DataDir = dir
	if s.HTTP == "" && s.HTTPS == "" {
		return errors.New("--http and --https: one of them must name an address")
	}
	if s.Domain == "" {
		s.Domain = localDomain(s.HTTP, s.HTTPS)
	}
	if err := s.checkAnonymous(); err != nil {
		return err
	}
	if err := s.checkTLS(); err != nil {
		return err
	}
	if s.ExtraCA != "" {
		pem, err := os.ReadFile(s.ExtraCA)
		if err != nil {
			return fmt.Errorf("--extra-ca: %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return fmt.Errorf("--extra-ca: %s holds no PEM certificate", s.ExtraCA)
		}
	}
	return nil
}

// localDomain is a name that means this machine, with the port that a client
// has to write. A port that the system will choose is not known yet.
func localDomain(http, https string) string {
	const name = "moat.localhost"
	address, usual := http, "80"
	if address == "" {
		address, usual = https, "443"
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil || port == usual || port == "0" {
		return name
	}
	return net.JoinHostPort(name, port)
}

// checkAnonymous keeps a server that asks for no key to this machine, unless it
// was said in so many words that it need not be.
func (s *settings) checkAnonymous() error {
	if s.Anonymous == "" && s.anywhere {
		return errors.New("--allow-anonymous-anywhere: needs --allow-anonymous")
	}
	if s.Anonymous == "" || s.anywhere {
		return nil
	}
	for _, l := range []struct{ name, address string }{{"--http", s.HTTP}, {"--https", s.HTTPS}} {
		if l.address != "" && !isLoopback(l.address) {
			return fmt.Errorf("--allow-anonymous %s: whoever reaches %s %s would act for this team; --allow-anonymous-anywhere permits it",
				s.Anonymous, l.name, l.address)
		}
	}
	return nil
}

// isLoopback reports whether only this machine reaches an address to listen on.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.Unmap().IsLoopback()
}

// logger writes to w as the settings say.
func (s *settings) logger(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: s.logLevel}
	if s.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

func parseLevel(text string) (slog.Level, error) {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}
	level, ok := levels[text]
	if !ok {
		return 0, fmt.Errorf("%q is not one of debug, info, warn, error", text)
	}
	return level, nil
}
