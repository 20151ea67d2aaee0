package tcpcrypt

import (
	"encoding/hex"
	"sync"
	"sync/atomic"
)

// SessionIDLen is the length in bytes of a SessionID.
const SessionIDLen = 1 + keyLen

// A SessionID is session_id[i] (RFC 8548, section 3.4): the same at both ends of a
// connection, and different for every connection. It is not secret.
type SessionID [SessionIDLen]byte

// String returns id in lower-case hex.
func (id SessionID) String() string { return hex.EncodeToString(id[:]) }

// A Session is an encrypted connection: what was agreed on, and the record layer's two
// directions. Its Sealer and its Opener may each be used by one goroutine at a time, at
// once with each other; the other methods by any.
type Session struct {
	id      SessionID
	tep     TEP
	aead    AEAD
	role    Role
	resumed bool

	gen    generations
	sealer *Sealer
	opener *Opener

	mu   sync.Mutex
	next *Resumable // ss[i+1]; nil once taken or wiped; guarded by mu
}

// generations is where the two directions meet (RFC 8548, section 3.8).
type generations struct {
	local  atomic.Uint64 // of the key that the Sealer uses
	remote atomic.Uint64 // highest that the Opener has seen
	sealed atomic.Bool   // FINp is out: no answer is owed any more
}

type sessionParams struct {
	secret         *secret // ss[i], wiped by newSession
	index          uint64  // i
	sn             []byte
	tep            TEP
	tepByte        byte
	aead           AEAD
	role           Role      // in this connection
	original       Role      // in the session that secret comes from
	budget         keyBudget // lowers the AEAD's
	sent, received uint64    // length of the Init messages
}

// newSession derives all that follows from ss[i], and erases it.
func newSession(p sessionParams) (*Session, error) {
	defer p.secret.wipe()
	s := &Session{
		id:  p.secret.sessionID(p.tepByte, p.sn),
		tep: p.tep, aead: p.aead, role: p.role, resumed: p.tepByte&vBit != 0,
	}
	mk := p.secret.masterKey(p.sn)
	defer mk.wipe()
	peer := RoleA
	if p.original == RoleA {
		peer = RoleB
	}
	var err error
	if s.sealer, err = newSealer(&s.gen, mk, p.aead, p.original, p.sent); err != nil {
		return nil, err
	}
	s.sealer.budget = p.aead.budget(p.budget)
	if s.opener, err = newOpener(&s.gen, mk, p.aead, peer, p.received); err != nil {
		return nil, err
	}
	s.next = &Resumable{secret: p.secret.nextSessionSecret(), index: p.index + 1, tep: p.tep, aead: p.aead, role: p.original}
	return s, nil
}

// ID returns the session ID.
func (s *Session) ID() SessionID { return s.id }

// TEP returns the negotiated TEP.
func (s *Session) TEP() TEP { return s.tep }

// AEAD returns the negotiated AEAD.
func (s *Session) AEAD() AEAD { return s.aead }

// Role returns our role in this connection.
func (s *Session) Role() Role { return s.role }

// Resumed reports whether the session continues an earlier one.
func (s *Session) Resumed() bool { return s.resumed }

// Generations returns the number of rekeyings of what we send and of what we receive.
func (s *Session) Generations() (local, remote uint64) {
	return s.gen.local.Load(), s.gen.remote.Load()
}

// Sealer returns the sending direction.
func (s *Session) Sealer() *Sealer { return s.sealer }

// Opener returns the receiving direction.
func (s *Session) Opener() *Opener { return s.opener }

// OwedRekeys is the number of rekeyings of the peer's that we have not answered yet.
// Each frame that is sealed answers one; with nothing to send, that many empty frames
// must be (RFC 8548, section 3.8). It is a count, so that a peer that rekeys without
// reading makes us hold nothing. It may be called at any time.
func (s *Session) OwedRekeys() int { return s.gen.owed() }

func (g *generations) owed() int {
	if g.sealed.Load() {
		return 0
	}
	local := g.local.Load() // first: it only grows towards remote
	if remote := g.remote.Load(); remote > local {
		return int(min(remote-local, 1<<30))
	}
	return 0
}

// TakeNext gives away ss[i+1], for a later connection to the same peer; nil if it was
// taken or wiped before, or if this session resumed one that was claimed: then the one
// that it was claimed from has ss[i+1].
func (s *Session) TakeNext() *Resumable {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.next
	s.next = nil
	return r
}

// Wipe erases the keys of both directions and, if it was not taken, ss[i+1]. Neither
// the Sealer nor the Opener may be in use. It may be called twice.
func (s *Session) Wipe() {
	s.sealer.wipe()
	s.opener.wipe()
	if r := s.TakeNext(); r != nil {
		r.Wipe()
	}
}
