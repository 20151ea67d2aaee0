package tcpcrypt

import (
	"net/netip"
	"time"
)

// A chain is one session in a Cache: the secrets from ss[i] on. It is guarded by the
// cache's lock.
type chain struct {
	id      uint64
	peer    netip.AddrPort
	active  bool
	claimed uint64 // number of the latest claim among the cache's, 0 for none
	created time.Time
	expires time.Time

	next *Resumable // ss[i]
	last *Resumable // ss[i+MaxAhead], from which the next half follows
	// halves are the peer's, for i to i+MaxAhead. Kept, so that a claim derives one
	// half, not nine.
	halves [MaxAhead + 1][IdentifierHalfLen]byte
}

// An identifierHalf is by what a peer names a chain.
type identifierHalf struct {
	tep  TEP
	half [IdentifierHalfLen]byte
}

// newChain empties r into a chain.
func newChain(peer netip.AddrPort, active bool, r *Resumable) *chain {
	next := &Resumable{secret: r.secret, index: r.index, tep: r.tep, aead: r.aead, role: r.role}
	r.secret = nil
	last := &Resumable{secret: new(secret), index: next.index, role: next.role}
	last.secret.b = next.secret.b
	ch := &chain{peer: peer, active: active, next: next, last: last}
	for i := range ch.halves {
		if i > 0 {
			last.Skip(1)
		}
		_, ch.halves[i] = last.halves()
	}
	return ch
}

func (ch *chain) destination() destination { return destination{ch.peer, ch.next.tep} }

// claim erases n secrets and gives the one after them away; the chain goes on behind it.
func (ch *chain) claim(n int) *Resumable {
	ch.next.Skip(n)
	r := ch.next.Claim()
	r.chain = ch.id
	copy(ch.halves[:], ch.halves[n+1:])
	for i := len(ch.halves) - n - 1; i < len(ch.halves); i++ {
		ch.last.Skip(1)
		_, ch.halves[i] = ch.last.halves()
	}
	return r
}

func (ch *chain) wipe() {
	ch.next.Wipe()
	ch.last.Wipe()
}
