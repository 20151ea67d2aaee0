package tcp

import (
	"errors"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// Causes of an abort that is this package's own. Those of a Session or Codec are
// theirs.
var (
	ErrTruncated        = errors.New("tcp: the stream ended before its last record")
	ErrAfterEnd         = errors.New("tcp: bytes after the last record")
	ErrHandshakeTimeout = errors.New("tcp: the key exchange took too long")
	ErrMisled           = errors.New("tcp: the peer takes the connection as encrypted, and it is not")
	ErrPeerDead         = errors.New("tcp: the peer does not answer")
)

// Error is the tcpip.Error of a connection that was aborted because its protection
// failed. To programs that know only netstack's errors it is a connection abort, in
// its own words; it never is one of those that mean end-of-file or a peer's reset.
type Error struct {
	tcpip.Error
	cause error
}

func abortError(cause error) *Error {
	return &Error{Error: &tcpip.ErrConnectionAborted{}, cause: cause}
}

// String returns the cause's text.
func (e *Error) String() string { return e.cause.Error() }

// Cause returns what went wrong, for errors.Is and errors.As.
func (e *Error) Cause() error { return e.cause }

// failure is the first fatal error of a connection, kept for good.
type failure struct {
	tcp   tcpip.Error // what Read and Write return
	cause error       // what Err returns
}
