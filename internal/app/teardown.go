package app

import (
	"errors"
	"fmt"
)

// teardown undoes what was set up, last thing first.
type teardown []undo

type undo struct {
	what string
	do   func() error
}

func (t *teardown) add(what string, do func() error) { *t = append(*t, undo{what, do}) }

// run undoes everything, also after a step has failed, and reports every failure.
func (t *teardown) run() error {
	var errs []error
	for i := len(*t) - 1; i >= 0; i-- {
		u := (*t)[i]
		if err := u.do(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", u.what, err))
		}
	}
	*t = nil
	return errors.Join(errs...)
}
