package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/moat-sandbox/moat/internal/app"
	"github.com/moat-sandbox/moat/internal/secret"
)

// serveWith runs `moat serve` up to the point where the server would start.
func serveWith(t *testing.T, env map[string]string, args ...string) (got app.Config, code int, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	c := &cli{
		stdin: strings.NewReader(""), stdout: &out, stderr: &errs, env: env,
		run: func(_ context.Context, config app.Config) error { got = config; return nil },
	}
	code = c.main(t.Context(), append([]string{"serve"}, args...))
	return got, code, errs.String()
}

func configFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "moat.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// layered gives one setting in all four layers, with another value in each.
type layered struct {
	flag   string
	read   func(app.Config) any
	values [3]string // on the command line, in the environment, in the file
	file   string    // how the file writes it, where that differs
	want   [4]any    // what the flag, the variable, the file and the default give
}

var layers = []layered{
	{flag: "data-dir", read: func(c app.Config) any { return c.DataDir },
		values: [3]string{"/f", "/e", "/y"}, want: [4]any{"/f", "/e", "/y", "/var/lib/moat"}},
	{flag: "domain", read: func(c app.Config) any { return c.Domain },
		values: [3]string{"f.test", "e.test:8443", "y.test"}, want: [4]any{"f.test", "e.test:8443", "y.test", "moat.localhost:6628"}},
	{flag: "http", read: func(c app.Config) any { return c.HTTP },
		values: [3]string{":1", "[::1]:2", "localhost:0"}, want: [4]any{":1", "[::1]:2", "localhost:0", "127.0.0.1:6628"}},
	{flag: "isolation", read: func(c app.Config) any { return c.Isolation },
		values: [3]string{"gvisor", "namespaces", "namespaces"}, want: [4]any{"gvisor", "namespaces", "namespaces", "gvisor"}},
	{flag: "pool", read: func(c app.Config) any { return c.Pool },
		values: [3]string{"0", "1", "2"}, want: [4]any{0, 1, 2, 4}},
	{flag: "max-sandboxes", read: func(c app.Config) any { return c.MaxSandboxes },
		values: [3]string{"1", "2", "3"}, want: [4]any{1, 2, 3, 256}},
	{flag: "team-limit", read: func(c app.Config) any { return c.TeamLimit },
		values: [3]string{"1", "2", "3"}, want: [4]any{1, 2, 3, 100}},
	{flag: "max-timeout", read: func(c app.Config) any { return c.MaxTimeout },
		values: [3]string{"1s", "90m", "48h"}, want: [4]any{time.Second, 90 * time.Minute, 48 * time.Hour, 24 * time.Hour}},
	{flag: "kill-on-exit", read: func(c app.Config) any { return c.KillOnExit },
		values: [3]string{"true", "1", "true"}, want: [4]any{true, true, true, false}},
	{flag: "allow-anonymous", read: func(c app.Config) any { return c.Anonymous },
		values: [3]string{"f", "e.e", "y-y"}, want: [4]any{"f", "e.e", "y-y", ""}},
	{flag: "log-level", read: func(c app.Config) any { return lowestLevel(c.Logger) },
		values: [3]string{"debug", "warn", "error"},
		want:   [4]any{slog.LevelDebug, slog.LevelWarn, slog.LevelError, slog.LevelInfo}},
	{flag: "max-connections", read: func(c app.Config) any { return c.Ingress.Connections },
		values: [3]string{"1", "2", "3"}, want: [4]any{1, 2, 3, 50_000}},
	{flag: "max-sandbox-requests", read: func(c app.Config) any { return c.Ingress.PerSandbox },
		values: [3]string{"1", "2", "3"}, want: [4]any{1, 2, 3, 10_000}},
	{flag: "max-unknown", read: func(c app.Config) any { return c.Ingress.Unknown },
		values: [3]string{"1", "2", "3"}, want: [4]any{1, 2, 3, 600}},
	{flag: "max-header", read: func(c app.Config) any { return c.Ingress.Header },
		values: [3]string{"8192", "9000", "100000"}, want: [4]any{8192, 9000, 100_000, 65_536}},
	{flag: "header-timeout", read: func(c app.Config) any { return c.Ingress.HeaderTimeout },
		values: [3]string{"1s", "1m", "2s"}, want: [4]any{time.Second, time.Minute, 2 * time.Second, 15 * time.Second}},
	{flag: "refuse-preflight", read: func(c app.Config) any { return c.Ingress.RefusePreflight },
		values: [3]string{"true", "1", "true"}, want: [4]any{true, true, true, false}},
	{flag: "metrics", read: func(c app.Config) any { return c.Metrics },
		values: [3]string{":1", "[::1]:2", "localhost:3"}, want: [4]any{":1", "[::1]:2", "localhost:3", ""}},
	{flag: "upstream-dns", read: func(c app.Config) any { return c.UpstreamDNS },
		values: [3]string{"192.0.2.1,[2001:db8::1]:5353", "192.0.2.2", ""}, file: `["192.0.2.3:54", "2001:db8::3"]`,
		want: [4]any{
			[]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("[2001:db8::1]:5353")},
			[]netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:53")},
			[]netip.AddrPort{netip.MustParseAddrPort("192.0.2.3:54"), netip.MustParseAddrPort("[2001:db8::3]:53")},
			[]netip.AddrPort(nil),
		}},
	{flag: "allow-range", read: func(c app.Config) any { return c.AllowRanges },
		values: [3]string{"10.1.0.0/16", "10.2.0.0/16, fd00::/8", ""}, file: "\n  - 10.3.0.0/16",
		want: [4]any{
			[]netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
			[]netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("fd00::/8")},
			[]netip.Prefix{netip.MustParsePrefix("10.3.0.0/16")},
			[]netip.Prefix(nil),
		}},
}

func lowestLevel(log *slog.Logger) slog.Level {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn} {
		if log.Enabled(context.Background(), level) {
			return level
		}
	}
	return slog.LevelError
}

func TestLaterLayersGiveWay(t *testing.T) {
	for _, l := range layers {
		t.Run(l.flag, func(t *testing.T) {
			written := first(l.file, l.values[2])
			file := configFile(t, l.flag+": "+written+"\n")
			inEnv := map[string]string{variable(l.flag): l.values[1]}
			onLine := []string{"--" + l.flag + "=" + l.values[0]}
			for i, layer := range []struct {
				name string
				env  map[string]string
				args []string
			}{
				{"flag", inEnv, append(onLine, "--config", file)},
				{"variable", inEnv, []string{"--config", file}},
				{"file", nil, []string{"--config", file}},
				{"default", nil, nil},
			} {
				config, code, stderr := serveWith(t, layer.env, layer.args...)
				if code != exitOK || stderr != "" {
					t.Fatalf("%s: exit code %d, stderr %q", layer.name, code, stderr)
				}
				if got := l.read(config); !reflect.DeepEqual(got, l.want[i]) {
					t.Errorf("%s decides: got %v, want %v", layer.name, got, l.want[i])
				}
			}
		})
	}
}

// Every setting is in the table above, or needs files and is tested below.
func TestEverySettingIsTested(t *testing.T) {
	tested := map[string]bool{
		"config": true, "https": true, "tls-cert": true, "tls-key": true, "tls-ca": true, "extra-ca": true,
		"acme": true, "acme-email": true, "acme-hook": true, "log-format": true, "allow-anonymous-anywhere": true,
	}
	for _, l := range layers {
		tested[l.flag] = true
	}
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	newSettings(flags)
	flags.VisitAll(func(f *pflag.Flag) {
		if !tested[f.Name] {
			t.Errorf("--%s is not tested", f.Name)
		}
	})
}

func TestRepeatedFlagsAddUp(t *testing.T) {
	config, _, stderr := serveWith(t, nil, "--allow-range", "10.1.0.0/16,10.2.0.0/16", "--allow-range", "10.3.0.0/16")
	if len(config.AllowRanges) != 3 || stderr != "" {
		t.Errorf("got %v, stderr %q", config.AllowRanges, stderr)
	}
}

// A server that asks for no key is for its own machine, or for all by an
// explicit word.
func TestAnonymousIsLocal(t *testing.T) {
	cert, key := writePair(t)
	tls := []string{"--tls-cert", cert, "--tls-key", key, "--https"}
	for _, c := range []struct {
		args    []string
		refused string
	}{
		{[]string{"--http", "127.0.0.1:80"}, ""},
		{[]string{"--http", "127.1.2.3:80"}, ""},
		{[]string{"--http", "[::1]:80"}, ""},
		{[]string{"--http", "localhost:80"}, ""},
		{append(tls, "localhost:443"), ""},
		{append(tls, ":443"), "--https :443"},
		{[]string{"--http", ":80"}, "--http :80"},
		{[]string{"--http", "0.0.0.0:80"}, "--http 0.0.0.0:80"},
		{[]string{"--http", "[::]:80"}, "--http [::]:80"},
		{[]string{"--http", "192.0.2.1:80"}, "--http 192.0.2.1:80"},
		{[]string{"--http", "some.host:80"}, "--http some.host:80"},
	} {
		args := append(c.args, "--allow-anonymous", "cube")
		config, code, stderr := serveWith(t, nil, args...)
		if c.refused == "" && (code != exitOK || config.Anonymous != "cube" || stderr != "") {
			t.Errorf("%q: exit code %d, stderr %q", c.args, code, stderr)
		}
		if c.refused == "" {
			continue
		}
		if want := "--allow-anonymous cube: whoever reaches " + c.refused; code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%q: exit code %d, stderr %q, want %q", c.args, code, stderr, want)
		}
		config, code, stderr = serveWith(t, nil, append(args, "--allow-anonymous-anywhere")...)
		if code != exitOK || config.Anonymous != "cube" || !strings.Contains(stderr, "whoever reaches the server acts for team cube") {
			t.Errorf("%q anywhere: exit code %d, stderr %q", c.args, code, stderr)
		}
	}
}

// Without a domain, sandboxes have one that leads to this machine.
func TestDomainFollowsThePort(t *testing.T) {
	cert, key := writePair(t)
	tls := []string{"--tls-cert", cert, "--tls-key", key}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--http", ":80"}, "moat.localhost"},
		{[]string{"--http", "127.0.0.1:0"}, "moat.localhost"},
		{[]string{"--http", "[::1]:81"}, "moat.localhost:81"},
		{append(tls, "--http", "", "--https", ":443"), "moat.localhost"},
		{append(tls, "--http", "", "--https", ":444"), "moat.localhost:444"},
		{append(tls, "--http", ":81", "--https", ":443"), "moat.localhost:81"},
		{[]string{"--http", ":81", "--domain", "e2b.test"}, "e2b.test"},
	} {
		if config, _, stderr := serveWith(t, nil, c.args...); config.Domain != c.want {
			t.Errorf("%q: got %q, want %q; stderr %q", c.args, config.Domain, c.want, stderr)
		}
	}
}

func TestConfigFileMayBeNamedByVariable(t *testing.T) {
	config, _, stderr := serveWith(t, map[string]string{"MOAT_CONFIG": configFile(t, "pool: 9")})
	if config.Pool != 9 || stderr != "" {
		t.Errorf("pool is %d, stderr %q", config.Pool, stderr)
	}
}

func TestBadSettingsAreNamed(t *testing.T) {
	for _, c := range []struct {
		args []string
		env  map[string]string
		want string
	}{
		{args: []string{"--pool", "-1"}, want: `invalid argument "-1" for "--pool" flag: -1 is less than 0`},
		{args: []string{"--max-sandboxes", "0"}, want: `"--max-sandboxes" flag: 0 is less than 1`},
		{args: []string{"--team-limit", "ten"}, want: `"--team-limit" flag: "ten" is not a whole number`},
		{args: []string{"--pool", "99999999999999999999"}, want: `is too large`},
		{args: []string{"--allow-range", "10.0.0.0/33"}, want: `"--allow-range" flag: "10.0.0.0/33" is not a CIDR`},
		{args: []string{"--allow-range", "10.0.0.7/8"}, want: `write 10.0.0.0/8`},
		{args: []string{"--allow-range", "10.0.0.7"}, want: `"10.0.0.7" is not a CIDR`},
		{args: []string{"--upstream-dns", "dns.test"}, want: `"dns.test" is neither an address nor address:port`},
		{args: []string{"--upstream-dns", "1.1.1.1,,8.8.8.8"}, want: `"" is neither an address`},
		{args: []string{"--upstream-dns", "1.1.1.1:0"}, want: `"1.1.1.1:0" is neither`},
		{args: []string{"--domain", ""}, want: `"" is not a domain name`},
		{args: []string{"--domain", "Moat.test"}, want: `"Moat.test" is not a domain name`},
		{args: []string{"--domain", "10.0.0.1"}, want: `"10.0.0.1" is not a domain name`},
		{args: []string{"--domain", "a..b"}, want: `"a..b" is not a domain name`},
		{args: []string{"--domain", "moat.test:0"}, want: `no port between 1 and 65535`},
		{args: []string{"--http", "3000"}, want: `"3000" is not host:port`},
		{args: []string{"--http", "127.0.0.1:70000"}, want: `no port between 0 and 65535`},
		{args: []string{"--http", "a_b:80"}, want: `neither an address nor a name`},
		{args: []string{"--http", ""}, want: `--http and --https: one of them must name an address`},
		{args: []string{"--isolation", "docker"}, want: `"docker" is not one of gvisor, namespaces`},
		{args: []string{"--max-connections", "0"}, want: `0 is less than 1`},
		{args: []string{"--max-header", "8191"}, want: `8191 is less than 8192`},
		{args: []string{"--header-timeout", "0s"}, want: `"0s" is less than a second`},
		{args: []string{"--metrics", "9628"}, want: `"9628" is not host:port`},
		{args: []string{"--max-timeout", "24"}, want: `"24" is not a duration`},
		{args: []string{"--max-timeout", "10ms"}, want: `less than a second`},
		{args: []string{"--log-level", "loud"}, want: `"loud" is not one of debug, info, warn, error`},
		{args: []string{"--log-format", "xml"}, want: `"xml" is not one of text, json`},
		{args: []string{"--data-dir", ""}, want: `--data-dir: must not be empty`},
		{args: []string{"--https", ":8443"}, want: `--https :8443: needs --tls-cert`},
		{args: []string{"--https", ":8443", "--tls-cert", "c.pem"}, want: `--tls-cert c.pem: needs --tls-key`},
		{args: []string{"--https", ":8443", "--tls-key", "k.pem"}, want: `--tls-key k.pem: needs --tls-cert`},
		{args: []string{"--tls-cert", "c.pem"}, want: `--tls-cert: needs --https`},
		{args: []string{"--tls-key", "k.pem"}, want: `--tls-key: needs --https`},
		{args: []string{"--tls-ca"}, want: `--tls-ca: needs --https`},
		{args: []string{"--https", ":8443", "--tls-ca", "--tls-key", "k.pem"}, want: `exclude each other`},
		{args: []string{"--https", ":8443", "--tls-ca", "--acme", "https://ca.test/dir"}, want: `exclude each other`},
		{args: []string{"--acme", "https://ca.test/dir"}, want: `--acme: needs --https`},
		{args: []string{"--https", ":8443", "--acme", "http://ca.test/dir"}, want: `"http://ca.test/dir" is not an https URL`},
		{args: []string{"--https", ":8443", "--acme", "https://ca.test/dir"}, want: `no authority vouches for moat.localhost`},
		{args: []string{"--https", ":8443", "--http", "", "--domain", "moat.test", "--acme", "https://ca.test/dir"}, want: `needs --http, reached as port 80`},
		{args: []string{"--https", ":8443", "--domain", "moat.test", "--acme", "https://ca.test/dir", "--acme-hook", "no-such"}, want: `--acme-hook: stat `},
		{args: []string{"--https", ":8443", "--domain", "moat.test", "--acme", "https://ca.test/dir", "--acme-hook", "settings_test.go"}, want: `is not a program`},
		{args: []string{"--acme-email", "a@b.test"}, want: `--acme-email: needs --acme`},
		{args: []string{"--acme-hook", "/bin/true"}, want: `--acme-hook: needs --acme`},
		{args: []string{"--https", ":8443", "--tls-cert", "no.pem", "--tls-key", "no.pem"}, want: `--tls-cert no.pem with --tls-key no.pem: open no.pem: no such file`},
		{args: []string{"--extra-ca", "no.pem"}, want: `--extra-ca: open no.pem: no such file`},
		{args: []string{"--extra-ca", "settings_test.go"}, want: `--extra-ca: settings_test.go holds no PEM certificate`},
		{args: []string{"--config", "no.yaml"}, want: `--config: open no.yaml: no such file`},
		{args: []string{"--allow-anonymous", "a b"}, want: `"a b" is not a team's name`},
		{args: []string{"--allow-anonymous-anywhere"}, want: `--allow-anonymous-anywhere: needs --allow-anonymous`},
		{args: []string{"extra"}, want: `unknown command "extra" for "moat serve"`},
		{env: map[string]string{"MOAT_POOL": "many"}, want: `MOAT_POOL: "many" is not a whole number`},
		{env: map[string]string{"MOAT_KILL_ON_EXIT": "maybe"}, want: `MOAT_KILL_ON_EXIT: `},
		{env: map[string]string{"MOAT_API_KEY": "e2b_SECRET"}, want: `MOAT_API_KEY: want e2b_ and lower-case hex digits`},
		{env: map[string]string{"MOAT_API_KEY": "e2b_"}, want: `MOAT_API_KEY: want`},
	} {
		_, code, stderr := serveWith(t, c.env, c.args...)
		if code != exitUsage || !strings.Contains(stderr, c.want) {
			t.Errorf("serve %q %v: exit code %d, stderr %q, want %q", c.args, c.env, code, stderr, c.want)
		}
		if strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "moat: ") {
			t.Errorf("serve %q: not one line: %q", c.args, stderr)
		}
		if strings.Contains(stderr, "SECRET") {
			t.Errorf("serve %q %v shows the key: %q", c.args, c.env, stderr)
		}
	}
}

func TestConfigFileIsStrict(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"pol: 3", ":1: pol: unknown key"},
		{"config: other.yaml", ":1: config: unknown key"},
		{"help: true", ":1: help: unknown key"},
		{"api-key: e2b_00", ":1: api-key: unknown key"},
		{"domain: a.test\npool: 3\npool: 3", ":3: pool: given twice"},
		{"pool: many", ":1: pool: want a whole number, not text (many)"},
		{"pool: '3'", ":1: pool: want a whole number, not text (3)"},
		{"pool: 1.5", ":1: pool: want a whole number, not a fraction (1.5)"},
		{"pool:", ":1: pool: want a whole number, not nothing"},
		{"pool: [1]", ":1: pool: want a whole number, not a list"},
		{"pool: -1", ":1: pool: -1 is less than 0"},
		{"kill-on-exit: 1", ":1: kill-on-exit: want true or false, not a whole number (1)"},
		{"kill-on-exit: yes", ":1: kill-on-exit: want true or false, not text (yes)"},
		{"domain: true", ":1: domain: want text, not true or false (true)"},
		{"domain: {a: b}", ":1: domain: want text, not a mapping"},
		{"max-timeout: 60", ":1: max-timeout: want text, not a whole number (60)"},
		{"allow-range: 10.0.0.0/8", ":1: allow-range: want a list, not text (10.0.0.0/8)"},
		{"allow-range: [10]", ":1: allow-range: want text, not a whole number (10)"},
		{"allow-range: [10.0.0.1/8]", `:1: allow-range: "10.0.0.1/8" has bits set`},
		{"- pool", ": must hold keys and values"},
		{"pool: 1\n---\npool: 2", ": holds more than one document"},
		{"pool: [", ": yaml: "},
	} {
		path := configFile(t, c.text)
		_, code, stderr := serveWith(t, nil, "--config", path)
		if code != exitUsage || !strings.HasPrefix(stderr, "moat: "+path+c.want) {
			t.Errorf("%q: exit code %d, stderr %q, want %q", c.text, code, stderr, c.want)
		}
	}
	for _, text := range []string{"", "# nothing\n"} {
		if _, code, stderr := serveWith(t, nil, "--config", configFile(t, text)); code != exitOK {
			t.Errorf("%q: exit code %d, stderr %q", text, code, stderr)
		}
	}
}

// A file's mistake is found even where a flag has the last word.
func TestConfigFileIsCheckedBehindFlags(t *testing.T) {
	_, code, stderr := serveWith(t, nil, "--pool", "1", "--config", configFile(t, "pool: many"))
	if code != exitUsage || !strings.Contains(stderr, "pool: want a whole number") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}

func TestKeyIsPreset(t *testing.T) {
	key := "e2b_" + strings.Repeat("0a", 20)
	config, _, stderr := serveWith(t, map[string]string{"MOAT_API_KEY": key})
	if config.APIKey.Reveal() != key || stderr != "" {
		t.Errorf("the key did not arrive; stderr %q", stderr)
	}
	if _, _, stderr := serveWith(t, map[string]string{"MOAT_API_KEY": "e2b_00"}); !strings.Contains(stderr, "can be guessed") {
		t.Errorf("no warning about a weak key: %q", stderr)
	}
}

func TestUnknownVariablesAreWarnedOf(t *testing.T) {
	_, code, stderr := serveWith(t, map[string]string{"MOAT_POOOL": "3", "MOAT_CONFIG": ""})
	if code != exitOK || !strings.Contains(stderr, "MOAT_POOOL: no such setting") || strings.Contains(stderr, "MOAT_CONFIG") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}

func TestFilesForTLS(t *testing.T) {
	cert, key := writePair(t)
	_, otherKey := writePair(t)
	args := []string{"--http", "", "--https", "127.0.0.1:0", "--log-format", "json"}
	config, code, stderr := serveWith(t, nil, append(args, "--tls-cert", cert, "--tls-key", key, "--extra-ca", cert)...)
	if code != exitOK || config.TLSCert != cert || config.TLSKey != key || config.ExtraCA != cert || config.HTTPS != "127.0.0.1:0" {
		t.Errorf("exit code %d, config %+v, stderr %q", code, config, stderr)
	}
	_, code, stderr = serveWith(t, nil, append(args, "--tls-cert", cert, "--tls-key", otherKey)...)
	if code != exitUsage || !strings.Contains(stderr, "private key does not match") {
		t.Errorf("another's key: exit code %d, stderr %q", code, stderr)
	}
}

// writePair writes a self-signed certificate and its key.
func writePair(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"moat.test"}}
	certDER, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: certDER}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// What serve prints when ready is a script that a shell can read.
func TestAnnouncementIsAShellScript(t *testing.T) {
	endpoints := app.Endpoints{APIURL: "http://127.0.0.1:6628", SandboxURL: "http://127.0.0.1:6628", Domain: "moat.localhost:6628"}
	for _, key := range []string{"", "e2b_00"} {
		var out strings.Builder
		endpoints.Key = secret.New(key)
		announce(&out, endpoints)
		want := "export E2B_API_URL=http://127.0.0.1:6628 E2B_SANDBOX_URL=http://127.0.0.1:6628 E2B_DOMAIN=moat.localhost:6628"
		if key != "" {
			want += " E2B_API_KEY=" + key
		}
		for _, line := range strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n") {
			if line != want && !strings.HasPrefix(line, "# ") {
				t.Errorf("key %q: unexpected line %q, want %q", key, line, want)
			}
		}
		if !strings.Contains(out.String(), want+"\n") || strings.Contains(out.String(), "only this once") != (key != "") {
			t.Errorf("key %q: got %q", key, out.String())
		}
	}
}

func TestServeEndsWellWhenAskedTo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx  context.Context
		want int
	}{{ctx, exitOK}, {t.Context(), exitError}} {
		cli := &cli{
			stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{},
			run: func(context.Context, app.Config) error { return fmt.Errorf("serve: %w", context.Canceled) },
		}
		if code := cli.main(c.ctx, []string{"serve"}); code != c.want {
			t.Errorf("context error %v: exit code %d, want %d", c.ctx.Err(), code, c.want)
		}
	}
}
