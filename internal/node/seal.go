package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
)

// sealPurpose separates the key for what network documents keep secret.
const sealPurpose = "network"

// seal parts a network document into what may be recorded in the open and the
// secrets of it, sealed for this sandbox.
func (n *Node) seal(id string, doc policy.Document) (open policy.Document, sealed []byte, err error) {
	secrets := doc.Secrets()
	if len(secrets) == 0 {
		return doc, nil, nil
	}
	values := make([]*string, len(secrets))
	for i, s := range secrets {
		if s.Known() {
			value := s.Reveal()
			values[i] = &value
		}
	}
	raw, err := json.Marshal(values)
	if err != nil {
		return policy.Document{}, nil, fmt.Errorf("seal network document: %w", err)
	}
	if sealed, err = n.Master.Seal(sealPurpose, id, raw); err != nil {
		return policy.Document{}, nil, fmt.Errorf("seal network document: %w", err)
	}
	return doc.WithoutSecrets(), sealed, nil
}

// unseal returns a record's network document with its secrets.
func (n *Node) unseal(record store.Sandbox) (policy.Document, error) {
	if len(record.NetworkSecrets) == 0 {
		return record.Network, nil
	}
	raw, err := n.Master.Open(sealPurpose, record.ID, record.NetworkSecrets)
	if err != nil {
		return policy.Document{}, fmt.Errorf("network document: %w", err)
	}
	var values []*string
	if json.Unmarshal(raw, &values) != nil { // whose error could repeat some of it
		return policy.Document{}, errors.New("network document: its secrets are damaged")
	}
	secrets := make([]secret.String, len(values))
	for i, v := range values {
		if v != nil {
			secrets[i] = secret.New(*v)
		}
	}
	return record.Network.WithSecrets(secrets)
}

// policyOf compiles what a record says the sandbox may reach now, with the
// secrets that are sealed in it. It is the only way from a record to a policy
// that is put in force.
func (n *Node) policyOf(record store.Sandbox) (_ *policy.Policy, err error) {
	if record.Network, err = n.unseal(record); err != nil {
		return nil, err
	}
	return n.Compile(record.Policy(time.Now()))
}
