package tcpcrypt

import (
	"bytes"
	"crypto/rand"
	"errors"
	"slices"
)

// A Negotiation is ENO for one connection. It is not safe for concurrent use.
//
// An active opener calls SYNOption, then ReceiveACK with the SYN-ACK; in a
// simultaneous open ReceiveSYN with the peer's SYN, and ReceiveACK with the first
// segment that has ACK. A passive opener calls ReceiveSYN, SYNOption, ReceiveACK.
type Negotiation struct {
	o      Options
	active bool

	phase  phase
	reason Reason // if phasePlain
	mine   enoOption
	peer   enoOption
	heard  bool // ReceiveSYN was called: later SYNs do not count
	offer  *Resumable
	found  *Resumable // passive: what Lookup claimed
	nonce  []byte     // ours, if we sent an identifier half
	chosen choice
}

// A phase of a Negotiation.
type phase uint8

const (
	phaseStart     phase = iota
	phaseOffered         // our SYN-form option is fixed
	phasePlain           // final: ordinary TCP
	phaseEncrypted       // final: key exchange or resumption follows
)

// NewNegotiation returns the negotiation of a connection that we open (active) or
// that is opened to us.
func NewNegotiation(o Options, active bool) (*Negotiation, error) {
	n := &Negotiation{active: active, offer: o.Offer}
	o, err := o.withDefaults()
	if err != nil || !active || !o.mayResume(n.offer) {
		n.dropOffer()
	}
	if err != nil {
		return nil, err
	}
	n.o = o
	return n, nil
}

// SYNOption returns the ENO option for our SYN or SYN-ACK, kind and length included,
// without padding, at most space bytes long. It is the same at each call. nil means
// none, and that ENO is disabled for this connection.
func (n *Negotiation) SYNOption(space int) []byte {
	switch {
	case n.phase == phaseOffered || n.phase == phaseEncrypted:
		return bytes.Clone(n.mine.raw)
	case n.phase == phasePlain:
		return nil
	case !n.active && !n.heard:
		n.disable(ReasonNoENO)
		return nil
	}
	build := n.answer
	if n.active {
		build = n.request
	}
	raw := build(space)
	if raw == nil {
		if n.phase != phasePlain {
			n.disable(ReasonLimit) // no room
		}
		return nil
	}
	mine, err := parseENO(raw)
	if err != nil {
		panic("tcpcrypt: our own option is ill-formed: " + err.Error())
	}
	n.mine, n.phase = mine, phaseOffered
	return bytes.Clone(n.mine.raw)
}

// request makes an active opener's option: every TEP, the most preferred last. An
// offer to resume stands last, without length byte. What does not fit is left out,
// least preferred first.
func (n *Negotiation) request(space int) []byte {
	var subs []suboption
	if g := n.globalBits(n.o.PassiveRole); g != 0 {
		subs = append(subs, suboption{glt: g})
	}
	global := len(subs)
	for _, t := range slices.Backward(n.o.TEPs) {
		if n.offer == nil || n.offer.tep != t {
			subs = append(subs, suboption{glt: byte(t)})
		}
	}
	if n.offer != nil {
		subs = append(subs, suboption{glt: byte(n.offer.tep), v: true, data: n.resumptionData(n.offer)})
	}
	raw := buildENO(subs)
	for len(raw) > space && len(subs) > global+1 {
		subs = slices.Delete(subs, global, global+1)
		raw = buildENO(subs)
	}
	if len(raw) > space && n.offer != nil {
		subs[len(subs)-1] = suboption{glt: byte(n.offer.tep)}
		n.dropOffer()
		raw = buildENO(subs)
	}
	if len(raw) > space {
		return nil
	}
	return raw
}

// answer makes a passive opener's option: the global suboption with b = 1 and the one
// TEP that we choose (RFC 8547, section 4.5), or nil with ENO disabled.
func (n *Negotiation) answer(space int) []byte {
	if n.peer.global()&passiveBit != 0 {
		n.disable(ReasonSameRole)
		return nil
	}
	if n.o.RequireApplicationAware && n.peer.global()&awareBit == 0 {
		n.disable(ReasonPolicy)
		return nil
	}
	subs := []suboption{{glt: n.globalBits(true)}, {}}
	if r := n.lookup(space); r != nil {
		n.found = r
		subs[1] = suboption{glt: byte(r.tep), v: true, data: n.resumptionData(r)}
		return buildENO(subs)
	}
	for _, t := range n.o.TEPs {
		if _, ok := n.peer.find(t); !ok {
			continue
		}
		subs[1] = suboption{glt: byte(t)}
		if raw := buildENO(subs); len(raw) <= space {
			return raw
		}
		return nil
	}
	n.disable(ReasonNoCommonTEP)
	return nil
}

// lookup returns the session that we resume as the peer offers, nil for none. A
// session that we know goes before our preference among TEPs (RFC 8548, section 3.5).
// space is asked first: what Lookup returns is spent.
func (n *Negotiation) lookup(space int) *Resumable {
	const shortest = 2 + 1 + 1 + halfLen // kind and length, global suboption, TEP, half
	if n.o.Lookup == nil || space < shortest+n.nonceLen() {
		return nil
	}
	for _, t := range n.o.TEPs {
		sub, ok := n.peer.find(t)
		if !ok || !sub.resumes() {
			continue
		}
		half := [halfLen]byte(sub.data)
		r := n.o.Lookup(t, half)
		if r == nil {
			continue
		}
		if _, theirs := r.halves(); n.o.mayResume(r) && r.tep == t && theirs == half {
			return r
		}
		r.Wipe()
	}
	return nil
}

func (n *Negotiation) globalBits(passive bool) (g byte) {
	if passive {
		g |= passiveBit
	}
	if n.o.ApplicationAware {
		g |= awareBit
	}
	return g
}

func (n *Negotiation) nonceLen() int { return maxNonceLen - n.o.ShortNonce }

// dropOffer gives up resuming what the caller wanted to.
func (n *Negotiation) dropOffer() {
	if n.offer != nil {
		n.offer.Wipe()
	}
	n.offer, n.nonce = nil, nil
}

// resumptionData is our identifier half of r and a fresh nonce.
func (n *Negotiation) resumptionData(r *Resumable) []byte {
	n.nonce = make([]byte, n.nonceLen())
	rand.Read(n.nonce) // never fails
	own, _ := r.halves()
	return append(own[:], n.nonce...)
}

// Withdraw drops ENO for good: the opener sent a SYN without it.
func (n *Negotiation) Withdraw() {
	if n.phase != phaseEncrypted {
		n.disable(ReasonFallback)
	}
}

// ReceiveSYN is told of the peer's SYN without ACK: of a passive open, or of a
// simultaneous open. tcpOptions is the raw option area of its TCP header, borrowed.
// Only the first call counts: a SYN sent again with other bytes changes nothing.
func (n *Negotiation) ReceiveSYN(tcpOptions []byte) {
	if n.heard || n.phase == phasePlain || n.phase == phaseEncrypted {
		return
	}
	n.heard = true
	o, ok := receivedENO(tcpOptions)
	if !ok {
		n.disable(ReasonNoENO)
		return
	}
	n.peer = o
	if n.active && n.phase == phaseOffered {
		// Simultaneous open: what cannot work is said in our SYN-ACK already, by
		// leaving ENO out.
		n.decide()
	}
}

// ReceiveACK is told of the first segment with ACK that TCP accepted, and decides:
// for an active opener normally the SYN-ACK (syn is true), for a passive one the
// handshake's last segment. tcpOptions is borrowed. Later calls are ignored.
func (n *Negotiation) ReceiveACK(tcpOptions []byte, syn bool) {
	if n.phase == phasePlain || n.phase == phaseEncrypted {
		return
	}
	if n.phase != phaseOffered { // we sent none
		if n.heard {
			n.disable(ReasonLimit) // under SYN cookies, say
		}
		n.disable(ReasonNoENO)
		return
	}
	switch eno, ok := receivedENO(tcpOptions); {
	case syn && !n.heard && ok:
		n.peer, n.heard = eno, true
	case syn && !n.heard:
		n.disable(ReasonNoENO)
		return
	case syn && ok:
		// The SYN-ACK of a simultaneous open: what the SYN said counts.
	case !syn && n.heard && hasENO(tcpOptions):
	default:
		n.disable(ReasonStripped)
		return
	}
	if n.decide() {
		n.phase = phaseEncrypted
		if !n.chosen.resume {
			n.Wipe()
		}
	}
}

// decide sets chosen from the two options that crossed, or disables ENO and returns
// false.
func (n *Negotiation) decide() bool {
	c := n.choose()
	switch {
	case !c.ok:
		n.disable(c.reason)
	case n.o.RequireApplicationAware && n.peer.global()&awareBit == 0:
		n.disable(ReasonPolicy)
	default:
		n.chosen = c
		return true
	}
	return false
}

func (n *Negotiation) choose() choice {
	return choose(n.mine, n.peer, func(t TEP, a, b []byte) bool {
		r := n.resumable()
		if r == nil || r.tep != t {
			return false
		}
		ours, theirs := a, b
		if n.mine.global()&passiveBit != 0 {
			ours, theirs = b, a
		}
		own, other := r.halves()
		return [halfLen]byte(ours) == own && [halfLen]byte(theirs) == other
	})
}

// Offered reports whether our SYN offers to resume Options.Offer: it does not without room.
func (n *Negotiation) Offered() bool { return n.offer != nil && n.mine.raw != nil }

// resumable is the session that we offered or accepted to resume.
func (n *Negotiation) resumable() *Resumable {
	if n.active {
		return n.offer
	}
	return n.found
}

func (n *Negotiation) disable(r Reason) {
	if n.phase != phasePlain {
		n.phase, n.reason = phasePlain, r
		n.Wipe()
	}
}

// Wipe erases the session secret that came with Offer or from Lookup if it was not
// used: call it when the connection has ended, decided or not. It may be called twice.
func (n *Negotiation) Wipe() {
	if r := n.resumable(); r != nil {
		r.Wipe()
	}
}

// An Outcome is what a negotiation came to.
type Outcome struct {
	Encrypted            bool
	Reason               Reason // why not Encrypted, else empty
	Role                 Role
	TEP                  TEP
	TEPByte              byte // the negotiated TEP's suboption byte as B sent it, v included
	Resumed              bool
	PeerApplicationAware bool
}

// Outcome returns the decision; ok is false as long as there is none.
func (n *Negotiation) Outcome() (o Outcome, ok bool) {
	aware := n.heard && n.peer.global()&awareBit != 0
	switch n.phase {
	case phasePlain:
		return Outcome{Reason: n.reason, PeerApplicationAware: aware}, true
	case phaseEncrypted:
		o = Outcome{Encrypted: true, Role: RoleB, TEP: n.chosen.tep, TEPByte: byte(n.chosen.tep),
			Resumed: n.chosen.resume, PeerApplicationAware: aware}
		if n.chosen.oneIsA {
			o.Role = RoleA
		}
		if o.Resumed {
			o.TEPByte |= vBit
		}
		return o, true
	default:
		return Outcome{Reason: ReasonOpening}, false
	}
}

// transcript is eno_transcript (RFC 8547, section 4.8).
func (n *Negotiation) transcript() []byte {
	return slices.Concat(n.chosen.a.raw, n.chosen.b.raw)
}

var errNotEncrypted = errors.New("tcpcrypt: the negotiation did not end so")

// KeyExchange returns the key exchange that follows a fresh negotiation.
func (n *Negotiation) KeyExchange() (*KeyExchange, error) {
	o, _ := n.Outcome()
	if !o.Encrypted || o.Resumed {
		return nil, errNotEncrypted
	}
	k, err := newKeyExchange(o, n.transcript(), n.o.AEADs)
	if err != nil {
		return nil, err
	}
	k.budget = n.o.budget()
	return k, nil
}

// ResumedSession returns the session that a negotiation with Outcome.Resumed agreed
// on. Both sides may send frames at once. The Resumable that it came from is spent.
func (n *Negotiation) ResumedSession() (*Session, error) {
	o, _ := n.Outcome()
	if !o.Resumed {
		return nil, errNotEncrypted
	}
	r := n.resumable()
	theirs := n.chosen.sub.data[halfLen:]
	if o.Role == RoleB {
		sub, _ := n.chosen.a.find(o.TEP)
		theirs = sub.data[halfLen:]
	}
	sn := slices.Concat(n.nonce, theirs)
	if r.role == RoleB {
		sn = slices.Concat(theirs, n.nonce)
	}
	return r.resume(o, sn, n.o.budget())
}
