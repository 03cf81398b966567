package gvisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// record is what the next server must know of a box to adopt it.
type record struct {
	Sentry *process `json:"sentry"`
	// Gofer is nil unless the root is a directory.
	Gofer *process `json:"gofer,omitempty"`
	// Grouped is true when the box has a cgroup.
	Grouped bool           `json:"grouped"`
	Limits  sandbox.Limits `json:"limits"`
	Started bool           `json:"started"`
}

const recordName = "box.json"

// save writes the record so that a reader finds the old one or the new one. It
// is not synced: after a crash of the machine there is no box either.
func (b *box) save() error {
	data, err := json.Marshal(record{
		Sentry: b.sentry, Gofer: b.gofer, Grouped: b.group != nil, Limits: b.limits, Started: b.started,
	})
	if err != nil {
		return fmt.Errorf("encode box record: %w", err)
	}
	path := filepath.Join(b.dir, recordName)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("write box record: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write box record: %w", err)
	}
	return nil
}

// loadRecord returns sandbox.ErrGone when there is none.
func loadRecord(dir string) (*record, error) {
	data, err := os.ReadFile(filepath.Join(dir, recordName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, sandbox.ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("read box record: %w", err)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("decode box record in %s: %w", dir, err)
	}
	if r.Sentry == nil {
		return nil, fmt.Errorf("decode box record in %s: no sentry", dir)
	}
	return &r, nil
}
