package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/acme"
)

// obtain gets a certificate, keeps it and puts it to use.
func (i *Issuer) obtain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	client := &acme.Client{Key: i.account, DirectoryURL: i.Directory, HTTPClient: i.http, UserAgent: "moat"}
	account := &acme.Account{}
	if i.Email != "" {
		account.Contact = []string{"mailto:" + i.Email}
	}
	if _, err := client.Register(ctx, account, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return fmt.Errorf("register: %w", err)
	}
	order, err := client.AuthorizeOrder(ctx, acme.DomainIDs(i.Names...))
	if err != nil {
		return fmt.Errorf("order: %w", err)
	}
	if err := i.authorize(ctx, client, order); err != nil {
		return err
	}
	if order, err = client.WaitOrder(ctx, order.URI); err != nil {
		return fmt.Errorf("wait for the order: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: i.Names}, key)
	if err != nil {
		return err
	}
	chain, _, err := client.CreateCertFromOrder(ctx, order, request, true)
	if err != nil {
		return fmt.Errorf("finalize: %w", err)
	}
	return i.use(chain, key)
}

// use keeps a fresh certificate and serves it.
func (i *Issuer) use(chain [][]byte, key *ecdsa.PrivateKey) error {
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return err
	}
	fresh := &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}
	if !i.covers(leaf) {
		return fmt.Errorf("the certificate is for %v, not for %v", leaf.DNSNames, i.Names)
	}
	i.current.Store(fresh)
	i.Logger.Info("TLS certificate issued", "names", leaf.DNSNames, "expires", leaf.NotAfter)
	if err := i.save(fresh); err != nil {
		// It works until the next start, which would get another one.
		i.Logger.Error("the TLS certificate cannot be kept", "err", err)
	}
	return nil
}

// authorize proves control over every name that the authority has not seen
// proved already. All proofs are shown before the first is looked at: those
// for a name and its wildcard are two records of one name.
func (i *Issuer) authorize(ctx context.Context, client *acme.Client, order *acme.Order) error {
	var pending []*acme.Authorization
	var chosen []*acme.Challenge
	for _, url := range order.AuthzURLs {
		z, err := client.GetAuthorization(ctx, url)
		if err != nil {
			return fmt.Errorf("get authorization: %w", err)
		}
		if z.Status == acme.StatusValid {
			continue
		}
		challenge, err := i.choose(z)
		if err != nil {
			return err
		}
		undo, err := i.show(ctx, client, z.Identifier.Value, challenge)
		if err != nil {
			return fmt.Errorf("prove %s: %w", z.Identifier.Value, err)
		}
		defer undo()
		pending, chosen = append(pending, z), append(chosen, challenge)
	}
	for n, z := range pending {
		if _, err := client.Accept(ctx, chosen[n]); err != nil {
			return fmt.Errorf("prove %s: %w", z.Identifier.Value, err)
		}
		if _, err := client.WaitAuthorization(ctx, z.URI); err != nil {
			return fmt.Errorf("prove %s by %s: %w", z.Identifier.Value, chosen[n].Type, err)
		}
	}
	return nil
}

// choose picks the way of proof that was configured.
func (i *Issuer) choose(z *acme.Authorization) (*acme.Challenge, error) {
	kind := "http-01"
	if i.Hook != "" {
		kind = "dns-01"
	}
	for _, c := range z.Challenges {
		if c.Type == kind {
			return c, nil
		}
	}
	return nil, fmt.Errorf("prove %s: the authority does not offer %s", z.Identifier.Value, kind)
}

// retryAfter is how long to wait after a failure: as long as the authority
// says, if it says anything.
func retryAfter(err error, pause time.Duration) time.Duration {
	var refused *acme.Error
	if errors.As(err, &refused) {
		if wait, limited := acme.RateLimit(refused); limited {
			return max(wait, pause)
		}
	}
	return pause
}

func isWildcard(name string) bool { return strings.HasPrefix(name, "*.") }
