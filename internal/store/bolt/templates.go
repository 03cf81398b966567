package bolt

import (
	"context"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/moat-sandbox/moat/internal/store"
)

const templateKind = "template"

// PutTemplate implements store.Store.
func (s *Store) PutTemplate(ctx context.Context, t store.Template) error {
	if t.ID == "" || slices.Contains(t.Names, "") {
		return fmt.Errorf("put template %q: id or a name is empty", t.ID)
	}
	return s.add(ctx, func(tx *bbolt.Tx) error {
		if tx.Bucket(templateBucket).Get([]byte(t.ID)) != nil {
			old, err := get[store.Template](tx, templateBucket, templateKind, t.ID)
			if err != nil {
				return err
			}
			if err := forgetNames(tx, old.Names); err != nil {
				return err
			}
		}
		for _, name := range t.Names {
			if err := takeName(tx, name, t.ID); err != nil {
				return err
			}
		}
		return put(tx, templateBucket, templateKind, t.ID, t)
	})
}

// takeName gives a name to a template, taking it from the one that has it.
func takeName(tx *bbolt.Tx, name, id string) error {
	names := tx.Bucket(nameBucket)
	if owner := names.Get([]byte(name)); owner != nil && string(owner) != id {
		other, err := get[store.Template](tx, templateBucket, templateKind, string(owner))
		if err != nil {
			return err
		}
		other.Names = slices.DeleteFunc(other.Names, func(n string) bool { return n == name })
		if err := put(tx, templateBucket, templateKind, other.ID, other); err != nil {
			return err
		}
	}
	return names.Put([]byte(name), []byte(id))
}

func forgetNames(tx *bbolt.Tx, names []string) error {
	for _, name := range names {
		if err := tx.Bucket(nameBucket).Delete([]byte(name)); err != nil {
			return err
		}
	}
	return nil
}

// Template implements store.Store. An id wins over a name.
func (s *Store) Template(ctx context.Context, ref string) (t store.Template, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		id := ref
		if tx.Bucket(templateBucket).Get([]byte(ref)) == nil {
			if owner := tx.Bucket(nameBucket).Get([]byte(ref)); owner != nil {
				id = string(owner)
			}
		}
		t, err = get[store.Template](tx, templateBucket, templateKind, id)
		return err
	})
	return t, err
}

// DeleteTemplate implements store.Store.
func (s *Store) DeleteTemplate(ctx context.Context, id string) error {
	return s.change(ctx, func(tx *bbolt.Tx) error {
		t, err := get[store.Template](tx, templateBucket, templateKind, id)
		if err != nil {
			return err
		}
		if err := forgetNames(tx, t.Names); err != nil {
			return err
		}
		return tx.Bucket(templateBucket).Delete([]byte(id))
	})
}

// Templates implements store.Store.
func (s *Store) Templates(ctx context.Context) (all []store.Template, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		all, err = list[store.Template](tx, templateBucket, templateKind)
		return err
	})
	return all, err
}
