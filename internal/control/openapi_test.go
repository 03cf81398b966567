package control

import (
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/moat-sandbox/moat/api"
)

// document is the part of api/openapi.yaml that can be checked. Beside a path's
// methods stand its parameters.
type document struct {
	Paths      map[string]map[string]yaml.Node
	Components struct{ Schemas map[string]schema }
}

type operation struct {
	OperationID string `yaml:"operationId"`
	Tags        []string
	Security    *[]any
	Responses   map[string]yaml.Node
}

type schema struct {
	Ref        string   `yaml:"$ref"`
	AllOf      []schema `yaml:"allOf"`
	Required   []string
	Properties map[string]yaml.Node
}

func readDocument(t *testing.T) (document, string) {
	t.Helper()
	raw, err := os.ReadFile("../../api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var d document
	if err := yaml.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	return d, string(raw)
}

// TestDocumentAndRoutesAgree: what is served is described, and the other way
// round.
func TestDocumentAndRoutesAgree(t *testing.T) {
	d, _ := readDocument(t)
	described := make(map[string]bool) // pattern -> needs a key
	for path, operations := range d.Paths {
		if _, has := operations["parameters"]; has != strings.Contains(path, "{") {
			t.Errorf("%s has parameters: %t", path, has)
		}
		delete(operations, "parameters")
		for method, node := range operations {
			var operation operation
			if err := node.Decode(&operation); err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			pattern := strings.ToUpper(method) + " " + path
			described[pattern] = operation.Security == nil
			if operation.OperationID == "" || len(operation.Responses) == 0 {
				t.Errorf("%s has no operationId or no responses", pattern)
			}
			if _, documented := operation.Responses["401"]; documented != (operation.Security == nil) {
				t.Errorf("%s: 401 is documented: %t, but a key is needed: %t", pattern, documented, operation.Security == nil)
			}
			if operator := strings.HasPrefix(path, "/operator/"); operator != slices.Contains(operation.Tags, "operator") {
				t.Errorf("%s has tags %v", pattern, operation.Tags)
			}
		}
	}
	served := make(map[string]bool)
	for _, rt := range slices.Concat(publicRoutes, operatorRoutes) {
		served[rt.pattern] = rt.rule != open
	}
	if !maps.Equal(described, served) {
		t.Errorf("described but not served, or served but not described, or not with the same need of a key:\n%v\n%v",
			missing(described, served), missing(served, described))
	}
}

func missing(from, in map[string]bool) (all []string) {
	for pattern, keyed := range from {
		if other, has := in[pattern]; !has || other != keyed {
			all = append(all, pattern)
		}
	}
	slices.Sort(all)
	return all
}

// TestDocumentAndTypesAgree: every wire type has a schema with the same fields,
// of which the same are always there.
func TestDocumentAndTypesAgree(t *testing.T) {
	d, raw := readDocument(t)
	types := []any{
		api.Error{}, api.Health{}, api.NewSandbox{}, api.Network{}, api.NetworkUpdate{}, api.Connect{}, api.TrafficToken{}, api.NewLink{}, api.Link{}, api.Question{}, api.Explanation{}, api.Decision{}, api.Replay{}, api.ReplayedFlow{}, api.NetworkState{}, api.EffectiveNetwork{}, api.NetworkWarning{}, api.NetworkEdit{}, api.NewGrant{}, api.Grant{}, api.FlowRecord{}, api.FlowPage{}, api.FlowsLost{}, api.FlowsEnd{}, api.Timeout{}, api.Refresh{},
		api.Sandbox{}, api.ListedSandbox{}, api.SandboxDetail{}, api.Lifecycle{}, api.SandboxMetric{}, api.SandboxesMetrics{},
		api.RequestChange{}, api.HostRule{}, api.Transform{}, api.OrderedRule{}, api.Match{}, api.Action{}, api.Inject{}, api.EgressProxy{}, api.SecretValue{}, api.Secret{},
		api.NewKey{}, api.Key{}, api.CreatedKey{}, api.NewTemplate{}, api.Template{},
	}
	for _, v := range types {
		goType := reflect.TypeOf(v)
		described, has := d.Components.Schemas[goType.Name()]
		if !has {
			t.Errorf("no schema %s", goType.Name())
			continue
		}
		properties, required := d.flatten(described)
		fields, always := jsonFields(goType)
		if !slices.Equal(properties, fields) {
			t.Errorf("%s: schema has %v, type has %v", goType.Name(), properties, fields)
		}
		if !slices.Equal(required, always) {
			t.Errorf("%s: schema requires %v, type always has %v", goType.Name(), required, always)
		}
	}
	if len(d.Components.Schemas) != len(types) {
		t.Errorf("%d schemas for %d types", len(d.Components.Schemas), len(types))
	}
	for _, match := range regexp.MustCompile(`"#/components/schemas/(\w+)"`).FindAllStringSubmatch(raw, -1) {
		if _, has := d.Components.Schemas[match[1]]; !has {
			t.Errorf("reference to schema %s, which is not there", match[1])
		}
	}
}

// flatten lists the properties of a schema and of those it is made of, sorted,
// and the required ones.
func (d document) flatten(s schema) (properties, required []string) {
	if s.Ref != "" {
		s = d.Components.Schemas[strings.TrimPrefix(s.Ref, "#/components/schemas/")]
	}
	properties = slices.Collect(maps.Keys(s.Properties))
	required = slices.Clone(s.Required)
	for _, part := range s.AllOf {
		p, r := d.flatten(part)
		properties, required = append(properties, p...), append(required, r...)
	}
	slices.Sort(properties)
	slices.Sort(required)
	return properties, required
}

// jsonFields lists a struct's JSON names, sorted, and those never omitted.
func jsonFields(t reflect.Type) (fields, always []string) {
	for _, f := range reflect.VisibleFields(t) {
		tag, tagged := f.Tag.Lookup("json")
		if !tagged {
			continue // embedded
		}
		name, options, _ := strings.Cut(tag, ",")
		fields = append(fields, name)
		if options == "" {
			always = append(always, name)
		}
	}
	slices.Sort(fields)
	slices.Sort(always)
	return fields, always
}
