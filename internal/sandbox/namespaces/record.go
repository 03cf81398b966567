package namespaces

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// record is what the next server must know of a box.
type record struct {
	// Engine is the program that runs the box, and knows how to remove it.
	Engine string `json:"engine"`
	// Guest is the box's init process; nil until the box was started.
	Guest *process `json:"guest,omitempty"`
}

const recordName = "box.json"

// save writes the record so that a reader finds the old one or the new one. It
// is not synced: after a crash of the machine there is no box either.
func (b *box) save() error {
	data, err := json.Marshal(record{Engine: b.engine.name, Guest: b.guest})
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
func loadRecord(dir string) (record, error) {
	data, err := os.ReadFile(filepath.Join(dir, recordName))
	if errors.Is(err, os.ErrNotExist) {
		return record{}, sandbox.ErrGone
	}
	if err != nil {
		return record{}, fmt.Errorf("read box record: %w", err)
	}
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil {
		return record{}, fmt.Errorf("decode box record in %s: %w", dir, err)
	}
	return rec, nil
}
