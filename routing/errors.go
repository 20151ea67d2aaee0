package routing

import "errors"

var (
	// ErrRunning means that a live instance holds this network namespace.
	ErrRunning = errors.New("another instance runs in this network namespace")
	// ErrTaken means that something we need belongs to somebody else: a device name, an
	// address, a rule priority, a table.
	ErrTaken = errors.New("taken")
)

// An Error is a step that could not be done.
type Error struct {
	What string // completes "cannot ...", in the user's words
	Err  error  // the cause; netlink's errno is in its chain
	Fix  string // what to do about it, a sentence or a command; may be empty
}

func (e *Error) Error() string { return "cannot " + e.What + ": " + e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// Hint is Fix, for programs that look for a remedy in any error.
func (e *Error) Hint() string { return e.Fix }
