package bolt

import (
	"context"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/moat-sandbox/moat/internal/store"
)

const keyKind = "key"

// CreateKey implements store.Store. Two keys cannot share a hash either.
func (s *Store) CreateKey(ctx context.Context, k store.Key) error {
	if k.ID == "" || k.Hash == "" {
		return fmt.Errorf("create key: id %q or hash is empty", k.ID)
	}
	return s.add(ctx, func(tx *bbolt.Tx) error {
		hashes := tx.Bucket(keyHashBucket)
		if tx.Bucket(keyBucket).Get([]byte(k.ID)) != nil || hashes.Get([]byte(k.Hash)) != nil {
			return fmt.Errorf("%s %q: %w", keyKind, k.ID, store.ErrExists)
		}
		if err := hashes.Put([]byte(k.Hash), []byte(k.ID)); err != nil {
			return err
		}
		return put(tx, keyBucket, keyKind, k.ID, k)
	})
}

// KeyByHash implements store.Store.
func (s *Store) KeyByHash(ctx context.Context, hash string) (k store.Key, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		id := tx.Bucket(keyHashBucket).Get([]byte(hash))
		if id == nil {
			return fmt.Errorf("key by hash: %w", store.ErrNotFound)
		}
		k, err = get[store.Key](tx, keyBucket, keyKind, string(id))
		return err
	})
	return k, err
}

// DeleteKey implements store.Store.
func (s *Store) DeleteKey(ctx context.Context, id string) error {
	return s.change(ctx, func(tx *bbolt.Tx) error {
		k, err := get[store.Key](tx, keyBucket, keyKind, id)
		if err != nil {
			return err
		}
		if err := tx.Bucket(keyHashBucket).Delete([]byte(k.Hash)); err != nil {
			return err
		}
		return tx.Bucket(keyBucket).Delete([]byte(id))
	})
}

// Keys implements store.Store.
func (s *Store) Keys(ctx context.Context) (all []store.Key, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		all, err = list[store.Key](tx, keyBucket, keyKind)
		return err
	})
	return all, err
}
