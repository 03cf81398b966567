package acme

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/crypto/acme"
)

const (
	presentTimeout = 10 * time.Minute // DNS can be slow to tell the world
	cleanupTimeout = time.Minute
)

// show puts a proof where the authority will look for it. undo takes it away
// again and is called however the order ends.
func (i *Issuer) show(ctx context.Context, client *acme.Client, name string, c *acme.Challenge) (undo func(), err error) {
	if c.Type == "dns-01" {
		return i.showRecord(ctx, client, name, c)
	}
	content, err := client.HTTP01ChallengeResponse(c.Token)
	if err != nil {
		return nil, err
	}
	path := client.HTTP01ChallengePath(c.Token)
	i.setProof(path, content)
	return func() { i.setProof(path, "") }, nil
}

func (i *Issuer) showRecord(ctx context.Context, client *acme.Client, name string, c *acme.Challenge) (undo func(), err error) {
	value, err := client.DNS01ChallengeRecord(c.Token)
	if err != nil {
		return nil, err
	}
	record := "_acme-challenge." + name
	undo = func() {
		if err := i.hook(context.WithoutCancel(ctx), cleanupTimeout, "cleanup", record, value); err != nil {
			i.Logger.Warn("DNS record of a proof is left behind", "name", record, "err", err)
		}
	}
	if err := i.hook(ctx, presentTimeout, "present", record, value); err != nil {
		undo() // it may have got half the way
		return nil, err
	}
	return undo, nil
}

// hook runs the operator's program. It gets the server's environment but for
// our own settings, one of which is an API key.
func (i *Issuer) hook(ctx context.Context, limit time.Duration, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, i.Hook, args...)
	for _, line := range os.Environ() {
		if !strings.HasPrefix(line, "MOAT_") {
			cmd.Env = append(cmd.Env, line)
		}
	}
	cmd.WaitDelay = time.Second // of a child that keeps the output open
	out, err := cmd.CombinedOutput()
	if err != nil {
		const most = 500 // bytes of what it says
		return fmt.Errorf("hook %s %s: %w: %.*s", i.Hook, args[0], err, most, strings.TrimSpace(string(out)))
	}
	return nil
}

func (i *Issuer) setProof(path, content string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if content == "" {
		delete(i.proofs, path)
	} else {
		i.proofs[path] = content
	}
}

// Prove answers the authority's questions over HTTP, and passes all other
// requests on.
func (i *Issuer) Prove(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/.well-known/acme-challenge/") && r.Method == http.MethodGet {
			i.mu.Lock()
			content := i.proofs[r.URL.Path]
			i.mu.Unlock()
			if content != "" {
				w.Header().Set("Content-Type", "text/plain")
				fmt.Fprint(w, content)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}
