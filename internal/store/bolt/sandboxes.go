package bolt

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/moat-sandbox/moat/internal/store"
)

const sandboxKind = "sandbox"

// CreateSandbox implements store.Store.
func (s *Store) CreateSandbox(ctx context.Context, record store.Sandbox) error {
	if record.ID == "" || strings.ContainsRune(record.Team, 0) {
		return fmt.Errorf("create sandbox: invalid id %q or team %q", record.ID, record.Team)
	}
	return s.add(ctx, func(tx *bbolt.Tx) error {
		if tx.Bucket(sandboxBucket).Get([]byte(record.ID)) != nil {
			return fmt.Errorf("%s %q: %w", sandboxKind, record.ID, store.ErrExists)
		}
		if err := tx.Bucket(teamBucket).Put(teamKey(record.Team, record.ID), nil); err != nil {
			return err
		}
		return put(tx, sandboxBucket, sandboxKind, record.ID, record)
	})
}

// Sandbox implements store.Store.
func (s *Store) Sandbox(ctx context.Context, id string) (record store.Sandbox, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		record, err = get[store.Sandbox](tx, sandboxBucket, sandboxKind, id)
		return err
	})
	return record, err
}

// UpdateSandbox implements store.Store.
func (s *Store) UpdateSandbox(ctx context.Context, id string, edit func(*store.Sandbox) error) (store.Sandbox, error) {
	var record store.Sandbox
	err := s.change(ctx, func(tx *bbolt.Tx) (err error) {
		if record, err = get[store.Sandbox](tx, sandboxBucket, sandboxKind, id); err != nil {
			return err
		}
		team := record.Team
		if err := edit(&record); err != nil {
			return err
		}
		if record.ID != id || record.Team != team {
			return fmt.Errorf("update sandbox %q: id and team cannot change", id)
		}
		return put(tx, sandboxBucket, sandboxKind, id, record)
	})
	if err != nil {
		return store.Sandbox{}, err
	}
	return record, nil
}

// DeleteSandbox implements store.Store.
func (s *Store) DeleteSandbox(ctx context.Context, id string) error {
	return s.change(ctx, func(tx *bbolt.Tx) error {
		record, err := get[store.Sandbox](tx, sandboxBucket, sandboxKind, id)
		if err != nil {
			return err
		}
		if err := tx.Bucket(teamBucket).Delete(teamKey(record.Team, id)); err != nil {
			return err
		}
		return tx.Bucket(sandboxBucket).Delete([]byte(id))
	})
}

// Sandboxes implements store.Store.
func (s *Store) Sandboxes(ctx context.Context, team string) (all []store.Sandbox, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		if team == "" {
			all, err = list[store.Sandbox](tx, sandboxBucket, sandboxKind)
			return err
		}
		prefix := teamKey(team, "")
		cursor := tx.Bucket(teamBucket).Cursor()
		for key, _ := cursor.Seek(prefix); bytes.HasPrefix(key, prefix); key, _ = cursor.Next() {
			record, err := get[store.Sandbox](tx, sandboxBucket, sandboxKind, string(key[len(prefix):]))
			if err != nil {
				return err
			}
			all = append(all, record)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

func teamKey(team, id string) []byte { return []byte(team + "\x00" + id) }
