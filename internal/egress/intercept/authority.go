package intercept

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// How much is kept. What is not kept any more is made again.
const (
	maxSandboxes = 4096
	maxLeafs     = 256 // of one sandbox
)

// Config is what an Authority is made of.
type Config struct {
	Root *Root
	// Now tells the time; nil means time.Now.
	Now func() time.Time
}

// Authority makes certificates for sandboxes, and keeps them in memory. It may
// be used concurrently.
type Authority struct {
	root *Root
	now  func() time.Time

	mu      sync.Mutex
	issuers map[string]*issuer // by sandbox; guarded by mu
}

// New checks the configuration.
func New(cfg Config) (*Authority, error) {
	if cfg.Root == nil {
		return nil, errors.New("intercept: no root given")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Authority{root: cfg.Root, now: cfg.Now, issuers: make(map[string]*issuer)}, nil
}

// OutsideError says that a name is none of the hosts for which certificates may
// be made.
type OutsideError struct{ Name string }

// Error implements error.
func (e *OutsideError) Error() string {
	return fmt.Sprintf("no rule of the sandbox lets the proxy answer for %s", e.Name)
}

// ServerConfig returns what the proxy needs to answer for a name to a sandbox
// with a protocol of ALPN. Hosts are the names, and patterns like *.name and *,
// that the sandbox's rules are about; the certificate can vouch for no other.
// For a name that is none of them the error is an *OutsideError. Names and hosts are in
// the normal form of policy.ParseName.
//
// The same question gets the same answer for a while, so that clients may
// resume their sessions. The result is not to be modified.
func (a *Authority) ServerConfig(sandbox string, hosts []string, name, protocol string) (*tls.Config, error) {
	host, ok := covering(hosts, name)
	if !ok {
		return nil, &OutsideError{Name: name}
	}
	l, err := a.issuer(sandbox, hosts).leaf(host, name, a.now())
	if err != nil {
		return nil, fmt.Errorf("make a certificate for %s: %w", name, err)
	}
	return l.config(protocol), nil
}

// issuer returns what signs for a sandbox as long as its hosts stay the same.
func (a *Authority) issuer(sandbox string, hosts []string) *issuer {
	a.mu.Lock()
	defer a.mu.Unlock()
	found, ok := a.issuers[sandbox]
	if ok && slices.Equal(found.hosts, hosts) {
		return found
	}
	if !ok {
		makeRoom(a.issuers, maxSandboxes)
	}
	made := &issuer{root: a.root, hosts: slices.Clone(hosts), intermediates: make(map[int]*intermediate), leafs: make(map[string]*leaf)}
	a.issuers[sandbox] = made
	return made
}

// Forget drops what is kept for a sandbox that has ended.
func (a *Authority) Forget(sandbox string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.issuers, sandbox)
}

// makeRoom drops any entry of a map that has reached its limit. Who fills the
// map on purpose cannot choose which.
func makeRoom[V any](m map[string]V, limit int) {
	for key := range m {
		if len(m) < limit {
			return
		}
		delete(m, key)
	}
}
