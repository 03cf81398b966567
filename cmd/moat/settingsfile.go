package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// fromFile takes from a YAML file what no earlier layer gave. It is strict: an
// unknown key, a repeated one or a value of another type is an error, also
// where an earlier layer has the last word.
func (s *settings) fromFile(path string, given map[string]bool) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	entries, err := mappingOf(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	seen := make(map[string]bool)
	for len(entries) > 0 {
		key, node := entries[0], entries[1]
		entries = entries[2:]
		f := s.flags.Lookup(key.Value)
		switch {
		case f == nil || key.Value == "config" || key.Value == "help":
			err = errors.New("unknown key")
		case seen[key.Value]:
			err = errors.New("given twice")
		default:
			err = setFromNode(f, node, given[key.Value])
		}
		if err != nil {
			return fmt.Errorf("%s:%d: %s: %w", path, key.Line, key.Value, err)
		}
		seen[key.Value] = true
	}
	return nil
}

// mappingOf parses the one document of a file, which must be a mapping, and
// returns its keys and values by turns. An empty file is an empty mapping.
func mappingOf(raw []byte) ([]*yaml.Node, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	var document, more yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, errors.New("holds more than one document")
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, errors.New("must hold keys and values")
	}
	return root.Content, nil
}

// setFromNode checks a value of the file against the setting's type and, unless
// another layer already decided, takes it.
func setFromNode(f *pflag.Flag, node *yaml.Node, decided bool) error {
	kind := f.Value.Type()
	nodes := []*yaml.Node{node}
	if kind == kindList {
		if node.Kind != yaml.SequenceNode {
			return fmt.Errorf("want a list, not %s", describe(node))
		}
		nodes = node.Content
	}
	for _, n := range nodes {
		if want := yamlTag(kind); n.Kind != yaml.ScalarNode || n.ShortTag() != want {
			return fmt.Errorf("want %s, not %s", tagNames[want], describe(n))
		}
		if decided {
			continue
		}
		if err := f.Value.Set(n.Value); err != nil {
			return err
		}
	}
	return nil
}

func yamlTag(kind string) string {
	switch kind {
	case kindBool:
		return "!!bool"
	case kindInt:
		return "!!int"
	default:
		return "!!str"
	}
}

var tagNames = map[string]string{
	"!!bool": "true or false", "!!int": "a whole number", "!!str": "text", "!!float": "a fraction",
	"!!null": "nothing", "!!seq": "a list", "!!map": "a mapping", "!!timestamp": "a date",
}

func describe(n *yaml.Node) string {
	name, ok := tagNames[n.ShortTag()]
	if !ok {
		name = n.ShortTag()
	}
	if n.Kind == yaml.ScalarNode && n.Value != "" {
		return fmt.Sprintf("%s (%s)", name, n.Value)
	}
	return name
}
