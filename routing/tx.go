package routing

import (
	"errors"
	"fmt"
	"slices"
)

// A change is one step at the host and its inverse. do must leave nothing behind when
// it fails; undo must take it as done if what it would remove is gone already.
type change struct {
	what     string // completes "cannot ...", in the user's words
	do, undo func() error
}

// A tx is a list of changes that stands or falls as a whole.
type tx struct {
	done []change
	fix  func(error) string      // what to do about a failure; may be nil
	fail func(what string) error // makes a step fail, in tests; nil otherwise
}

// apply does c and remembers how to undo it.
func (t *tx) apply(c change) error {
	err := error(nil)
	if t.fail != nil {
		err = t.fail(c.what)
	}
	if err == nil {
		err = c.do()
	}
	if err != nil {
		e := &Error{What: c.what, Err: err}
		if t.fix != nil {
			e.Fix = t.fix(err)
		}
		return e
	}
	t.done = append(t.done, c)
	return nil
}

// rollback undoes everything, newest first, whatever fails on the way.
func (t *tx) rollback() (err error) {
	for _, c := range slices.Backward(t.done) {
		if c.undo == nil {
			continue
		}
		if e := c.undo(); e != nil {
			err = errors.Join(err, fmt.Errorf("undo %q: %w", c.what, e))
		}
	}
	t.done = nil
	return err
}
