package tcp

import (
	"errors"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// Why a Rekey is refused.
var (
	ErrNotEncrypted = errors.New("tcp: the connection is not encrypted")
	ErrSendClosed   = errors.New("tcp: the last record was sent")
)

// Rekey starts a rekeying (RFC 8548, section 3.8). It goes out at once, in a record
// without data, unless the peer has not answered an earlier one: then the next data
// has it. During the key exchange it is remembered. The error is ErrNotEncrypted of a
// connection that is plain or not decided, ErrSendClosed after Shutdown or Close, and
// Err's of one that has failed.
func (s *SecureEndpoint) Rekey() error {
	s.mu.Lock()
	if s.x.is(modeKeying) {
		s.rekeyWhenReady = true
		s.mu.Unlock()
		return s.Err()
	}
	s.mu.Unlock()
	if !s.x.is(modeEncrypted) {
		if err := s.Err(); err != nil {
			return err
		}
		return ErrNotEncrypted
	}
	out := &s.out
	out.mu.Lock()
	err := s.writable()
	if err == nil {
		s.codec.Rekey()
		out.rekey.Store(true)
		s.payOwedLocked()
	}
	out.mu.Unlock()
	s.payOwed() // what became owed while we held the lock
	switch err.(type) {
	case nil:
		return s.Err()
	case *tcpip.ErrClosedForSend:
		return ErrSendClosed
	default:
		return s.Err()
	}
}

// Generations returns how often the keys of what we send and of what we receive were
// replaced; 0 of a connection that is not encrypted. The peer has answered each
// rekeying of ours when received is at least sent.
func (s *SecureEndpoint) Generations() (sent, received uint64) {
	if !s.Encrypted() {
		return 0, 0
	}
	select {
	case <-s.ready:
	default:
		return 0, 0
	}
	if s.codec == nil {
		return 0, 0 // the key exchange has failed
	}
	return s.codec.Generations()
}

// owes says whether a record without data is to be sent: as an answer, or since a
// rekeying was asked for. One of those may not run ahead of a peer that has not
// answered, and is left to the next data then. Called with out.mu held.
func (s *SecureEndpoint) owes() bool {
	if s.codec.Owed() > 0 {
		return true
	}
	if !s.out.rekey.Load() {
		return false
	}
	if sent, received := s.codec.Generations(); sent > received {
		s.out.rekey.Store(false) // the codec remembers
		return false
	}
	return true
}
