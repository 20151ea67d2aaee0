package tun

import (
	"errors"
	"net"
)

var (
	// ErrClosed is the error of everything that is used after its Close. It is
	// net.ErrClosed, and so what package os returns then.
	ErrClosed = net.ErrClosed

	// ErrDeleted means that someone else deleted the device.
	ErrDeleted = errors.New("tun: the device was deleted")

	// ErrDown means that someone else took the device down. Its routes went with that, so
	// it is of no more use than one that was deleted.
	ErrDown = errors.New("tun: the device was taken down")

	// ErrMalformed is the error of a packet that is not one.
	ErrMalformed = errors.New("tun: malformed packet")

	// ErrInUse is the error of a second endpoint on a device.
	ErrInUse = errors.New("tun: the device has an endpoint already")
)

// An OpenError is a device that could not be created.
type OpenError struct {
	Name string // of the device, as asked for
	Err  error  // the cause; an errno is in its chain

	hint string
}

func (e *OpenError) Error() string { return "cannot create " + e.Name + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *OpenError) Unwrap() error { return e.Err }

// Hint returns what to do about it, a sentence or a command; empty if that is not
// known.
func (e *OpenError) Hint() string { return e.hint }
