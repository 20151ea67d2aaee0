package tcpcrypt

import "errors"

const (
	// IdentifierHalfLen is the length in bytes of half a resumption identifier.
	IdentifierHalfLen = 9

	halfLen     = IdentifierHalfLen
	maxNonceLen = 8
)

// A Resumable is a session secret ss[i] that was not used yet (RFC 8548, section 3.5),
// with what goes on from its original session: the AEAD and the roles. It secures one
// connection at most. Not safe for concurrent use.
type Resumable struct {
	_      noCopy
	secret *secret // nil once spent or wiped
	index  uint64  // i
	tep    TEP
	aead   AEAD
	role   Role // ours in the original session
}

// TEP returns the TEP of the session.
func (r *Resumable) TEP() TEP { return r.tep }

// Index returns i of ss[i]; ss[0] is the fresh session's.
func (r *Resumable) Index() uint64 { return r.index }

// Halves returns the halves of the identifier resume[i]: ours, which we send, and the
// peer's, by which we know its offer. They go by the roles in the original session.
func (r *Resumable) Halves() (own, peer [IdentifierHalfLen]byte) { return r.halves() }

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

// Next erases ss[i] and returns ss[i+1]; nil if ss[i] is gone.
func (r *Resumable) Next() *Resumable {
	if r.secret == nil {
		return nil
	}
	n := &Resumable{secret: r.secret.nextSessionSecret(), index: r.index + 1, tep: r.tep, aead: r.aead, role: r.role}
	r.Wipe()
	return n
}

// Wipe erases the secret. It may be called twice.
func (r *Resumable) Wipe() {
	if r.secret != nil {
		r.secret.wipe()
		r.secret = nil
	}
}

// resume spends r on a connection.
func (r *Resumable) resume(o Outcome, sn []byte) (*Session, error) {
	if r.secret == nil {
		return nil, errors.New("tcpcrypt: this session secret was used before")
	}
	ss := r.secret
	r.secret = nil
	return newSession(sessionParams{
		secret: ss, index: r.index, sn: sn, tep: o.TEP, tepByte: o.TEPByte, aead: r.aead,
		role: o.Role, original: r.role,
	})
}
