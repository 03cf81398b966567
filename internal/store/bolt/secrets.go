package bolt

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/moat-sandbox/moat/internal/store"
)

const secretKind = "secret"

// PutSecret implements store.Store.
func (s *Store) PutSecret(ctx context.Context, record store.Secret) error {
	if record.Team == "" || record.Name == "" || len(record.Sealed) == 0 || strings.ContainsRune(record.Team+record.Name, 0) {
		return fmt.Errorf("put secret: invalid team %q or name %q, or nothing sealed", record.Team, record.Name)
	}
	return s.add(ctx, func(tx *bbolt.Tx) error {
		return put(tx, secretBucket, secretKind, secretID(record.Team, record.Name), record)
	})
}

// Secret implements store.Store.
func (s *Store) Secret(ctx context.Context, team, name string) (record store.Secret, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		record, err = get[store.Secret](tx, secretBucket, secretKind, secretID(team, name))
		return err
	})
	return record, err
}

// DeleteSecret implements store.Store.
func (s *Store) DeleteSecret(ctx context.Context, team, name string) error {
	return s.change(ctx, func(tx *bbolt.Tx) error {
		bucket, id := tx.Bucket(secretBucket), []byte(secretID(team, name))
		if bucket.Get(id) == nil {
			return fmt.Errorf("%s %q: %w", secretKind, name, store.ErrNotFound)
		}
		return bucket.Delete(id)
	})
}

// Secrets implements store.Store.
func (s *Store) Secrets(ctx context.Context, team string) (all []store.Secret, err error) {
	prefix := []byte(secretID(team, ""))
	if team == "" {
		prefix = nil
	}
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(secretBucket).Cursor()
		for id, raw := cursor.Seek(prefix); id != nil && bytes.HasPrefix(id, prefix); id, raw = cursor.Next() {
			record, err := decode[store.Secret](raw, secretKind, string(id))
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

func secretID(team, name string) string { return team + "\x00" + name }
