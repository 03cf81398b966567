package bolt

import (
	"fmt"

	"github.com/go-json-experiment/json"
	"go.etcd.io/bbolt"

	"github.com/moat-sandbox/moat/internal/store"
)

// get reads the record of a kind ("sandbox", "key", "template") by id.
func get[T any](tx *bbolt.Tx, bucket []byte, kind, id string) (T, error) {
	raw := tx.Bucket(bucket).Get([]byte(id))
	if raw == nil {
		var none T
		return none, fmt.Errorf("%s %q: %w", kind, id, store.ErrNotFound)
	}
	return decode[T](raw, kind, id)
}

// list reads all records of a kind.
func list[T any](tx *bbolt.Tx, bucket []byte, kind string) ([]T, error) {
	var all []T
	err := tx.Bucket(bucket).ForEach(func(id, raw []byte) error {
		record, err := decode[T](raw, kind, string(id))
		all = append(all, record)
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

func put(tx *bbolt.Tx, bucket []byte, kind, id string, record any) error {
	raw, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("%s %q: encode: %w", kind, id, err)
	}
	return tx.Bucket(bucket).Put([]byte(id), raw)
}

// decode is strict: a record with a field that nobody here knows would lose it
// at the next update.
func decode[T any](raw []byte, kind, id string) (T, error) {
	var record T
	if err := json.Unmarshal(raw, &record, json.RejectUnknownMembers(true)); err != nil {
		var none T
		return none, fmt.Errorf("%s %q: corrupt record: %w", kind, id, err)
	}
	return record, nil
}
