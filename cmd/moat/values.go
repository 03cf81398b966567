package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/api"
)

// value is a flag whose Set checks the form. All layers of the configuration
// go through Set, so a mistake is refused alike wherever it was written.
type value[T any] struct {
	to    *T
	text  string
	kind  string
	parse func(string) (T, error)
}

func newValue[T any](to *T, kind, preset string, parse func(string) (T, error)) *value[T] {
	v := &value[T]{to: to, kind: kind, parse: parse, text: preset}
	// A preset is a constant of this program and is tested to parse.
	*to, _ = parse(preset)
	return v
}

func (v *value[T]) Set(text string) error {
	parsed, err := v.parse(text)
	if err != nil {
		return err
	}
	*v.to, v.text = parsed, text
	return nil
}

func (v *value[T]) String() string { return v.text }
func (v *value[T]) Type() string   { return v.kind }

// list is a flag that may be repeated and whose values may hold several
// elements, separated by commas. An empty value adds none.
type list[T any] struct {
	to    *[]T
	texts []string
	parse func(string) (T, error)
}

func (l *list[T]) Set(text string) error {
	if text == "" {
		return nil
	}
	for _, element := range strings.Split(text, ",") {
		element = strings.TrimSpace(element)
		parsed, err := l.parse(element)
		if err != nil {
			return err
		}
		*l.to, l.texts = append(*l.to, parsed), append(l.texts, element)
	}
	return nil
}

func (l *list[T]) String() string { return strings.Join(l.texts, ",") }
func (l *list[T]) Type() string   { return kindList }

// The kinds of settings that a configuration file tells apart.
const (
	kindText = "string"
	kindBool = "bool"
	kindInt  = "int"
	kindList = "list"
)

func parseText(text string) (string, error) { return text, nil }

// parseTeam takes a team's name, or "" for none.
func parseTeam(text string) (string, error) {
	if text != "" && !api.ValidTeam(text) {
		return "", fmt.Errorf("%q is not a team's name: letters, digits, dots, dashes and underscores", text)
	}
	return text, nil
}

// parseListen takes "host:port", ":port" for every address of the machine, and
// "" for no listener.
func parseListen(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", fmt.Errorf("%q is not host:port", text)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("%q has no port between 0 and 65535", text)
	}
	if _, err := netip.ParseAddr(host); host != "" && err != nil && !validName(host) {
		return "", fmt.Errorf("%q has neither an address nor a name before its port", text)
	}
	return text, nil
}

// parseDomain takes a DNS name, with a port where clients have to write one.
func parseDomain(text string) (string, error) {
	name := text
	if host, port, err := net.SplitHostPort(text); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", fmt.Errorf("%q has no port between 1 and 65535", text)
		}
		name = host
	}
	if _, err := netip.ParseAddr(name); err == nil || !validName(name) {
		return "", fmt.Errorf("%q is not a domain name", text)
	}
	return text, nil
}

// validName reports whether name is a lower-case DNS name. Upper case is left
// out so that the configured domain and a request's Host compare as bytes.
func validName(name string) bool {
	if len(name) > 253 {
		return false
	}
	for _, label := range strings.Split(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	return true
}

// parseResolver takes an address with or without a port; 53 is the default.
func parseResolver(text string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(addr, 53), nil
	}
	resolver, err := netip.ParseAddrPort(text)
	if err != nil || resolver.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is neither an address nor address:port", text)
	}
	return resolver, nil
}

// parseRange takes a prefix without stray host bits: it opens what nothing else
// can open, so it has to say exactly what is meant.
func parseRange(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not a CIDR such as 10.1.0.0/16", text)
	}
	if prefix != prefix.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has bits set behind its prefix; write %s", text, prefix.Masked())
	}
	return prefix, nil
}

// oneOf takes one of a few words.
func oneOf(words ...string) func(string) (string, error) {
	return func(text string) (string, error) {
		if !slices.Contains(words, text) {
			return "", fmt.Errorf("%q is not one of %s", text, strings.Join(words, ", "))
		}
		return text, nil
	}
}

// atLeast takes a whole number that is not below least.
func atLeast(least int) func(string) (int, error) {
	return func(text string) (int, error) {
		n, err := strconv.Atoi(text)
		switch {
		case errors.Is(err, strconv.ErrRange):
			return 0, fmt.Errorf("%q is too large", text)
		case err != nil:
			return 0, fmt.Errorf("%q is not a whole number", text)
		case n < least:
			return 0, fmt.Errorf("%d is less than %d", n, least)
		}
		return n, nil
	}
}

// parseLifetime takes a duration of at least a second.
func parseLifetime(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration such as 90s, 5m or 24h", text)
	}
	if d < time.Second {
		return 0, fmt.Errorf("%q is less than a second", text)
	}
	return d, nil
}
