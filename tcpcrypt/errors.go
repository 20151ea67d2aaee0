package tcpcrypt

import (
	"errors"
	"fmt"
)

// What a caller can decide on. Every failure but ErrNeedMore is fatal to the
// connection: TCP is to be reset, and the application to get an error that is not
// end-of-file.
var (
	ErrNeedMore = errors.New("tcpcrypt: need more bytes") // not a failure: read and call again

	ErrMalformed        = errors.New("tcpcrypt: malformed message") // every ParseError matches it
	ErrBadMagic         = errors.New("tcpcrypt: not an Init message")
	ErrBadPublicKey     = errors.New("tcpcrypt: invalid public key")
	ErrZeroSharedSecret = errors.New("tcpcrypt: public key yields an all-zero shared secret")
	ErrNoCommonAEAD     = errors.New("tcpcrypt: no common AEAD")
	ErrNotOffered       = errors.New("tcpcrypt: peer chose an AEAD that was not offered")

	ErrAuth      = errors.New("tcpcrypt: record failed authentication")
	ErrTruncated = errors.New("tcpcrypt: stream truncated: TCP ended without FINp")
	ErrAfterFIN  = errors.New("tcpcrypt: bytes after the last record")

	ErrTooLong   = errors.New("tcpcrypt: data does not fit a record")
	ErrFINSealed = errors.New("tcpcrypt: the last record is already sealed")
	ErrWiped     = errors.New("tcpcrypt: session is closed")
	errOffset    = errors.New("tcpcrypt: stream offset spent")
)

// A ParseError is a message of the peer's that does not follow the RFC.
type ParseError struct {
	Field  string // as the RFC spells it
	Offset int    // in bytes, into the parser's input
	Reason string // never payload bytes
}

// Error implements error.
func (e *ParseError) Error() string {
	return fmt.Sprintf("tcpcrypt: malformed message: %s at byte %d: %s", e.Field, e.Offset, e.Reason)
}

// Is matches ErrMalformed.
func (e *ParseError) Is(target error) bool { return target == ErrMalformed }
