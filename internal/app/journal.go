package app

import (
	"context"
	"errors"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/moat-sandbox/moat/internal/audit"
)

// auditFile is where every record goes, below the data directory.
const auditFile = "audit.jsonl"

// journal is the audit log with its file. It outlives everything that writes
// to it.
type journal struct {
	*audit.Log
	stop    context.CancelFunc
	writing errgroup.Group
}

func openJournal(c Config) (*journal, error) {
	file, err := audit.OpenFile(audit.FileConfig{Path: filepath.Join(c.DataDir, auditFile), Logger: c.Logger})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	j := &journal{stop: stop}
	j.writing.Go(func() error { return file.Run(ctx) })
	if j.Log, err = audit.New(audit.Config{File: file}); err != nil {
		return nil, errors.Join(err, j.close())
	}
	return j, nil
}

// close writes what is still waiting to be written.
func (j *journal) close() error {
	j.stop()
	return j.writing.Wait()
}
