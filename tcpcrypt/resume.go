package tcpcrypt

import (
	"errors"
	"fmt"
	"io"
)

const (
	// MaxAhead is by how many i the passive side may have fallen behind the opener, who
	// burns one with every attempt, and still know its identifier. What is skipped is
	// erased; beyond that an offer is answered with a fresh key exchange.
	MaxAhead = 8

	// IdentifierHalfLen is the length in bytes of half a resumption identifier.
	IdentifierHalfLen = 9

	halfLen     = IdentifierHalfLen
	maxNonceLen = 8
)

// A Resumable is a session secret ss[i] that was not used yet (RFC 8548, section 3.5),
// with what goes on from its original session: the AEAD and the roles. It secures one
// connection at most. Not safe for concurrent use.
//
// [Session.TakeNext] starts a chain of them, and a [Cache] keeps such chains. Without
// one, call Claim for each attempt, successful or not, and keep the rest.
type Resumable struct {
	_       noCopy
	secret  *secret // nil once spent or wiped
	index   uint64  // i
	claimed bool    // ss[i+1] is another's, so no session made from this gives it away
	tep     TEP
	aead    AEAD
	role    Role   // ours in the original session
	chain   uint64 // the ID in the cache that it was claimed from, 0 for none
}

// Format makes every verb print nothing of use.
func (*Resumable) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// TEP returns the TEP of the session.
func (r *Resumable) TEP() TEP { return r.tep }

// Index returns i of ss[i]; ss[0] is the fresh session's.
func (r *Resumable) Index() uint64 { return r.index }

// AEAD returns the AEAD of the session.
func (r *Resumable) AEAD() AEAD { return r.aead }

// Chain returns the ID, in the cache that r was claimed from, of the session that r is
// of; 0 if it comes from none.
func (r *Resumable) Chain() uint64 { return r.chain }

// Halves returns the halves of the identifier resume[i]: ours, which we send, and the
// peer's, by which we know its offer. They go by the roles in the original session.
// All zero if ss[i] is gone.
func (r *Resumable) Halves() (own, peer [IdentifierHalfLen]byte) { return r.halves() }

// PeerHalves returns the peer's halves for i to i+MaxAhead, in order: what an offer may
// name. It changes nothing. nil if ss[i] is gone.
func (r *Resumable) PeerHalves() (halves [][IdentifierHalfLen]byte) {
	if r.secret == nil {
		return nil
	}
	ahead := &Resumable{secret: new(secret), role: r.role}
	ahead.secret.b = r.secret.b
	defer ahead.Wipe()
	for range MaxAhead + 1 {
		_, peer := ahead.halves()
		halves = append(halves, peer)
		ahead.Skip(1)
	}
	return halves
}

func (r *Resumable) halves() (own, peer [halfLen]byte) {
	if r.secret == nil {
		return own, peer
	}
	id := r.secret.identifier()
	own, peer = [halfLen]byte(id[:halfLen]), [halfLen]byte(id[halfLen:])
	if r.role == RoleB {
		own, peer = peer, own
	}
	return own, peer
}

// Skip erases ss[i] and the n-1 secrets after it: r is ss[i+n] from now on.
func (r *Resumable) Skip(n int) {
	if r.secret == nil {
		return
	}
	for range n {
		next := r.secret.nextSessionSecret()
		r.secret.wipe()
		r.secret, r.index = next, r.index+1
	}
}

// Claim gives ss[i] away, for one connection; r is ss[i+1] from now on. A claim is
// never given back: a connection that comes to nothing costs its i. nil if ss[i] is
// gone.
func (r *Resumable) Claim() *Resumable {
	if r.secret == nil {
		return nil
	}
	c := &Resumable{secret: r.secret, index: r.index, claimed: true, tep: r.tep, aead: r.aead, role: r.role}
	r.secret = r.secret.nextSessionSecret()
	r.index++
	return c
}

// Wipe erases the secret. It may be called twice.
func (r *Resumable) Wipe() {
	if r.secret != nil {
		r.secret.wipe()
		r.secret = nil
	}
}

// resume spends r on a connection.
func (r *Resumable) resume(o Outcome, sn []byte, budget keyBudget) (*Session, error) {
	if r.secret == nil {
		return nil, errors.New("tcpcrypt: this session secret was used before")
	}
	ss := r.secret
	r.secret = nil
	s, err := newSession(sessionParams{
		secret: ss, index: r.index, sn: sn, tep: o.TEP, tepByte: o.TEPByte, aead: r.aead,
		role: o.Role, original: r.role, budget: budget,
	})
	if err == nil && r.claimed {
		s.TakeNext().Wipe()
	}
	return s, err
}
