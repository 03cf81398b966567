package node

import (
	"net/netip"

	"github.com/moat-sandbox/moat/internal/secret"
	"github.com/moat-sandbox/moat/internal/store"
)

// Reachable is a live sandbox as its visitors need it.
type Reachable struct {
	Record store.Sandbox
	Addr   netip.Addr
	Done   <-chan struct{}
	Keys   Keys
}

// Keys are what opens a sandbox from outside. All are derived from the server's
// own key; an empty one opens nothing.
type Keys struct {
	// Guest is the access token of the guest daemon; empty for a sandbox that
	// was created without one.
	Guest secret.String
	// Traffic is the token for private ports, and Link signs the links that
	// open them to browsers; both are empty where no port is private.
	Traffic, Link secret.String
}

// Reach returns where a live sandbox is reached and a channel that closes when
// that ends. It answers from memory.
func (n *Node) Reach(id string) (Reachable, bool) {
	l, err := n.find(id)
	if err != nil || l.retired() {
		return Reachable{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return Reachable{Record: l.record, Addr: l.slot.IP4, Done: l.done, Keys: l.keys}, true
}

func (n *Node) keys(s store.Sandbox) Keys {
	return Keys{Guest: n.GuestToken(s), Traffic: n.TrafficToken(s), Link: n.fromNonce("link", s)}
}

// GuestToken is Keys.Guest of a record.
func (n *Node) GuestToken(s store.Sandbox) secret.String {
	if !s.Secure {
		return secret.String{}
	}
	return n.Master.Token("guest", s.ID)
}

// TrafficToken is Keys.Traffic of a record.
func (n *Node) TrafficToken(s store.Sandbox) secret.String { return n.fromNonce("traffic", s) }

// fromNonce derives what is to change with the record's nonce. Without one
// there is nothing: nobody gets in.
func (n *Node) fromNonce(purpose string, s store.Sandbox) secret.String {
	if s.TrafficNonce == "" {
		return secret.String{}
	}
	return n.Master.Token(purpose, s.ID+":"+s.TrafficNonce)
}
