// Package bolt is the embedded store: one file, one process, every change on
// the disk before it is confirmed.
package bolt

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/moat-sandbox/moat/internal/store"
)

// schema numbers the layout of the buckets and the form of the records in
// them. A file with a higher number was written by a newer program, whose
// records this one must neither misread nor overwrite.
const schema = 1

// Buckets. Records are JSON by id; the "by" buckets are indexes, written in the
// transaction that writes their record.
var (
	metaBucket     = []byte("meta")
	sandboxBucket  = []byte("sandboxes")
	teamBucket     = []byte("sandboxes by team") // team, NUL, id -> nothing
	keyBucket      = []byte("keys")
	keyHashBucket  = []byte("keys by hash") // hash -> id
	templateBucket = []byte("templates")
	nameBucket     = []byte("templates by name") // name -> id
	secretBucket   = []byte("secrets")           // team, NUL, name -> record
)

var buckets = [][]byte{
	metaBucket, sandboxBucket, teamBucket, keyBucket, keyHashBucket, templateBucket, nameBucket, secretBucket,
}

// schemaKey is where metaBucket holds the schema number, in decimal.
var schemaKey = []byte("schema")

var _ store.Store = (*Store)(nil)

// Store is a store.Store in a single file.
type Store struct {
	db      *bbolt.DB
	reserve reserve
}

// lockPatience bounds the wait for the lock of an open file. A server that was
// killed a moment ago may have left it to a child that it was just starting and
// that has not executed its program yet.
const lockPatience = 2 * time.Second

// Open opens the file at path, creating it with mode 0600 when there is none.
// The file stays locked until Close: a second Open, by any process, fails after
// a short wait.
func Open(path string) (*Store, error) {
	s := new(Store)
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:      lockPatience,
		FreelistType: bbolt.FreelistMapType,
		OpenFile:     s.reserve.openFile,
	})
	switch {
	case errors.Is(err, bbolterrors.ErrTimeout):
		return nil, fmt.Errorf("open store: %s is in use by another process", path)
	case err != nil:
		return nil, fmt.Errorf("open store: %s: %w", path, classify(err))
	}
	s.db = db
	if err := s.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %s: %w", path, err), db.Close())
	}
	return s, nil
}

// prepare checks the schema and makes the buckets of a new file, and those
// that an older program did not know.
func (s *Store) prepare() error {
	complete := true
	err := s.db.View(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			complete = complete && tx.Bucket(name) != nil
		}
		meta := tx.Bucket(metaBucket)
		if meta != nil {
			return checkSchema(string(meta.Get(schemaKey)))
		}
		if first, _ := tx.Cursor().First(); first != nil {
			return errors.New("not a store of this program")
		}
		return nil
	})
	if err != nil || complete {
		return err
	}
	return s.add(context.Background(), func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return tx.Bucket(metaBucket).Put(schemaKey, []byte(strconv.Itoa(schema)))
	})
}

func checkSchema(found string) error {
	n, err := strconv.Atoi(found)
	switch {
	case err != nil || n < 1:
		return fmt.Errorf("schema %q is not a number", found)
	case n > schema:
		return fmt.Errorf("written by a newer version: schema %d, this version knows %d", n, schema)
	}
	return nil
}

// Close waits for running transactions and releases the file.
func (s *Store) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

func (s *Store) view(ctx context.Context, read func(*bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.db.View(read)
}

// add runs a transaction that makes the store larger. It fails with
// store.ErrFull while there is no room for it and for later changes.
func (s *Store) add(ctx context.Context, write func(*bbolt.Tx) error) error {
	return s.change(ctx, func(tx *bbolt.Tx) error {
		free := int64(s.db.Stats().FreePageN) * int64(s.db.Info().PageSize)
		if err := s.reserve.ensure(tx.Size(), free); err != nil {
			return err
		}
		return write(tx)
	})
}

// change runs a transaction that takes away from the store or replaces what is
// there. The reserve lets it succeed on a full device.
func (s *Store) change(ctx context.Context, write func(*bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return classify(s.db.Update(write))
}

// classify marks the errors of a full device as store.ErrFull.
func classify(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", store.ErrFull, err)
	}
	return err
}
