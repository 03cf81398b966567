// Package moat_test holds what is true of the tree as a whole.
package moat_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/moat-sandbox/moat"

// packageRules say who may import whom inside this module. A line is
//
//	name: packages -> packages that they may import
//
// where "x/..." stands for x and all below it. The first line that names a
// package is its rule; a package that no line names is an error. Tests are
// free to import more.
const packageRules = `
wire types:          api/... ->
secrets:             internal/secret ->
lent connections:    internal/handover ->
decisions are pure:  internal/policy -> internal/secret

go sdk:              client -> api/...
command line:        cmd/moat -> api client internal/app internal/secret internal/sandbox/gvisor
guest binary:        cmd/moat-guest -> internal/guest/... api/...
lab binary:          cmd/moat-lab -> internal/lab

sandbox contract:    internal/sandbox -> internal/policy
store contract:      internal/store -> internal/policy internal/sandbox
stores are leaves:   internal/store/... -> internal/store internal/policy internal/sandbox
secrets of teams:    internal/vault -> internal/store internal/policy internal/secret
kernel:              internal/egress/kernel -> internal/egress/socket internal/policy
egress contract:     internal/egress -> internal/policy
sockets:             internal/egress/socket ->
names and dialling:  internal/egress/dns internal/egress/dial -> internal/egress internal/egress/socket internal/policy
audit:               internal/audit -> internal/policy
certificates:        internal/egress/intercept ->
proxy:               internal/egress/proxy/... -> internal/egress/proxy/... internal/egress internal/egress/intercept internal/egress/socket internal/audit internal/handover internal/policy internal/secret
drivers are leaves:  internal/sandbox/gvisor internal/sandbox/namespaces -> internal/sandbox
templates:           internal/template/... -> internal/template/... internal/sandbox internal/store
guest daemon:        internal/guest/... -> internal/guest/... api/...
public URLs:         internal/ingress -> internal/ingress/link internal/ingress/wire internal/handover internal/sandbox internal/secret api
its parts:           internal/ingress/link internal/ingress/cert internal/ingress/acme internal/ingress/wire -> internal/secret

http api:            internal/control -> api internal/store internal/sandbox internal/policy internal/secret internal/audit
node:                internal/node -> api internal/store internal/sandbox internal/policy internal/secret internal/egress internal/egress/kernel internal/template
benchmarks:          bench/ingress -> bench/peers internal/ingress internal/ingress/cert internal/audit internal/policy internal/sandbox internal/secret
wiring:              internal/app -> internal/... api

laboratory:          internal/lab ->
end-to-end tests:    test/... -> test/... internal/lab api/... client
loads:               bench/load ->
whom we compare with: bench/peers -> internal/lab
`

// dependencyRules keep what is specific to one technology in one place:
//
//	name: dependency -> packages that may import it
const dependencyRules = `
one owner of the kernel's network:  github.com/google/nftables -> internal/egress/kernel internal/lab
one owner of the kernel's network:  github.com/vishvananda/netlink -> internal/egress/kernel internal/lab internal/sandbox/gvisor
one driver knows gVisor:            gvisor.dev/gvisor -> internal/sandbox/gvisor
one store knows bolt:               go.etcd.io/bbolt -> internal/store/bolt
one place knows registries:         github.com/google/go-containerregistry -> internal/template/...
one place speaks DNS:               github.com/miekg/dns -> internal/egress/dns internal/lab test/... bench/load
one place knows Prometheus:         github.com/prometheus/client_golang -> internal/app
one place speaks ACME:              golang.org/x/crypto/acme -> internal/ingress/acme
the command line is at the edge:    github.com/spf13/cobra -> cmd/moat
`

// rule is one line of a table.
type rule struct {
	name        string
	left, right []string
}

func parseRules(t *testing.T, table string) (rules []rule) {
	t.Helper()
	for line := range strings.Lines(table) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		name, rest, ok := strings.Cut(line, ":")
		left, right, ok2 := strings.Cut(rest, "->")
		if !ok || !ok2 {
			t.Fatalf("rule %q is not of the form name: packages -> packages", line)
		}
		rules = append(rules, rule{strings.TrimSpace(name), strings.Fields(left), strings.Fields(right)})
	}
	return rules
}

// matches reports whether pkg is one of the patterns.
func matches(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		prefix, below := strings.CutSuffix(pattern, "/...")
		return pkg == prefix || below && strings.HasPrefix(pkg, prefix+"/")
	})
}

// tree maps each package of this module to what its files, tests aside,
// import.
func tree(t *testing.T) map[string][]string {
	t.Helper()
	imports := make(map[string]map[string]bool)
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if name := d.Name(); name == "node_modules" || name == "testdata" || len(name) > 1 && name[0] == '.' {
				return fs.SkipDir
			}
			return nil
		case !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go"):
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		pkg := path.Dir(filepath.ToSlash(file))
		if imports[pkg] == nil {
			imports[pkg] = make(map[string]bool)
		}
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			imports[pkg][imported] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string][]string)
	for pkg, set := range imports {
		found[pkg] = slices.Sorted(maps.Keys(set))
	}
	return found
}

func TestImportsGoOneWay(t *testing.T) {
	rules := parseRules(t, packageRules)
	used := make(map[string]bool)
	for pkg, imports := range tree(t) {
		i := slices.IndexFunc(rules, func(r rule) bool { return matches(r.left, pkg) })
		if i < 0 {
			t.Errorf("no rule names package %s", pkg)
			continue
		}
		used[rules[i].name] = true
		for _, imported := range imports {
			ours, ok := strings.CutPrefix(imported, module+"/")
			if ok && !matches(rules[i].right, ours) {
				t.Errorf("%s: %s imports %s", rules[i].name, pkg, ours)
			}
		}
	}
	for _, r := range rules {
		if !used[r.name] {
			t.Errorf("rule %q is about no package that exists", r.name)
		}
	}
}

func TestDependenciesHaveTheirPlace(t *testing.T) {
	for _, r := range parseRules(t, dependencyRules) {
		used := false
		for pkg, imports := range tree(t) {
			for _, imported := range imports {
				if !matches([]string{r.left[0] + "/..."}, imported) {
					continue
				}
				used = true
				if !matches(r.right, pkg) {
					t.Errorf("%s: %s imports %s", r.name, pkg, imported)
				}
			}
		}
		if !used {
			t.Errorf("rule %q: nobody imports %s", r.name, r.left[0])
		}
	}
}

// TestRulesCanFail keeps the tests above from passing for the wrong reason.
func TestRulesCanFail(t *testing.T) {
	for _, c := range []struct {
		pattern, pkg string
		want         bool
	}{
		{"api", "api", true},
		{"api", "api/process", false},
		{"api/...", "api/process", true},
		{"api/...", "api", true},
		{"api/...", "apiary", false},
		{"internal/policy", "internal/control", false},
	} {
		if got := matches([]string{c.pattern}, c.pkg); got != c.want {
			t.Errorf("pattern %s matches %s: %v, want %v", c.pattern, c.pkg, got, c.want)
		}
	}
	if len(tree(t)["internal/lab"]) == 0 {
		t.Error("the tree seems empty: internal/lab imports nothing")
	}
}
