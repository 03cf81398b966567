package app

import (
	"context"
	"fmt"
	"time"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/policy"
)

// recordGap says in the records of every sandbox that was adopted that there
// was a time without a server, and what that meant for it.
func (m *machine) recordGap(ctx context.Context, log *audit.Log) error {
	found, err := m.records.Sandboxes(ctx, "")
	if err != nil {
		return fmt.Errorf("list adopted sandboxes: %w", err)
	}
	now := time.Now()
	for _, record := range found {
		reason := "no server ran for a time: what the kernel let through or refused then is not recorded"
		if p, err := m.compile(record.Policy(now)); err == nil && p.Carry() != policy.CarryNone {
			reason += "; connections that the proxy carried were cut, and new ones to it refused"
		}
		log.Append(audit.Record{
			Time: now, Sandbox: record.ID, Protocol: audit.TCP, Rule: ruleLost, Reason: reason, Generation: record.Generation,
		})
	}
	return nil
}
