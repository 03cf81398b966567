package control

import (
	"net/netip"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// editBody is api.NetworkEdit with everything else a client may send.
type editBody struct {
	api.NetworkEdit
	Rest map[string]jsontext.Value `json:",embed"`
}

// editNetwork changes single entries. The document is read and written in one
// step, so two who edit at once both have their way.
func editNetwork(c *call) error {
	var body editBody
	if err := c.sandboxBody(&body, &body.Rest); err != nil {
		return err
	}
	if len(body.Allow)+len(body.Deny) == 0 {
		return badRequest("one of allow and deny is needed")
	}
	if n := len(body.Allow) + len(body.Deny); n > policy.DefaultMaxEntries {
		return badRequest("allow and deny have %d entries, at most %d are accepted in an edit", n, policy.DefaultMaxEntries)
	}
	generation, err := c.ifMatch()
	if err != nil {
		return err
	}
	if _, err := c.sandbox(); err != nil {
		return err
	}
	ctx, cancel := c.lasting()
	defer cancel()
	record, receipt, err := c.Engine.EditNetwork(ctx, c.id, func(s store.Sandbox) (allow, deny []string, err error) {
		if generation != 0 && generation != s.Generation {
			return nil, nil, sandbox.ErrGeneration
		}
		return c.edited(s, body.NetworkEdit)
	})
	if err != nil {
		return err
	}
	c.showReceipt(receipt)
	return c.replyState(record)
}

// edited are a sandbox's lists after an edit.
func (c *call) edited(s store.Sandbox, edit api.NetworkEdit) (allow, deny []string, err error) {
	toAllow, toDeny := canonicalSet(edit.Allow), canonicalSet(edit.Deny)
	for _, entry := range edit.Deny {
		if canonical, kind := policy.Canonical(entry); toAllow[canonical] {
			return nil, nil, badRequest("%q is in both allow and deny", clip(entry))
		} else if kind != policy.EntryName {
			deny = append(deny, entry)
		}
	}
	allow = with(without(s.Network.AllowOut, toDeny), edit.Allow)
	deny = with(without(s.Network.DenyOut, toAllow), deny)
	s.Network.AllowOut, s.Network.DenyOut = allow, deny
	compiled, err := c.Compile(s.Policy(time.Now()))
	if err != nil {
		return nil, nil, err
	}
	for _, entry := range edit.Deny {
		if d := decideEntry(compiled, entry); d.Verdict == policy.Allow {
			return nil, nil, badRequest("%q would still be allowed: %s", clip(entry), d.Reason())
		}
	}
	return allow, deny, nil
}

// decideEntry decides about what an entry of a list stands for. About a prefix,
// in parts of which the answer may differ, it decides nothing.
func decideEntry(p *policy.Policy, entry string) policy.Decision {
	canonical, kind := policy.Canonical(entry)
	if addr, err := netip.ParseAddr(canonical); err == nil {
		return p.Decide(policy.Flow{Proto: policy.TCP, Dst: netip.AddrPortFrom(addr, policy.PortHTTPS)})
	}
	if kind != policy.EntryName {
		return policy.Decision{}
	}
	text := canonical
	switch {
	case text == "*":
		text = "any.invalid"
	case text[0] == '*':
		text = "any" + text[1:]
	}
	name, err := policy.ParseName(text)
	if err != nil { // nothing has such a name
		return policy.Decision{}
	}
	return p.DecideFlow(name, policy.Flow{Proto: policy.TCP, Dst: netip.AddrPortFrom(netip.Addr{}, policy.PortHTTPS)})
}

// canonicalSet has the canonical form of each entry.
func canonicalSet(list []string) map[string]bool {
	set := make(map[string]bool, len(list))
	for _, entry := range list {
		canonical, _ := policy.Canonical(entry)
		set[canonical] = true
	}
	return set
}

// without copies a list but for the entries that mean the same as one in gone.
func without(list []string, gone map[string]bool) (rest []string) {
	for _, entry := range list {
		if canonical, _ := policy.Canonical(entry); !gone[canonical] {
			rest = append(rest, entry)
		}
	}
	return rest
}

// with adds to a list the entries that mean the same as none in it.
func with(list, more []string) []string {
	have := canonicalSet(list)
	for _, entry := range more {
		if canonical, _ := policy.Canonical(entry); !have[canonical] {
			have[canonical] = true
			list = append(list, entry)
		}
	}
	return list
}
