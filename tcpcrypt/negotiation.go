package tcpcrypt

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
)

// Options says what to offer and accept. The zero value is what most callers want.
type Options struct {
	TEPs  []TEP  // most preferred first; nil means DefaultTEPs
	AEADs []AEAD // most preferred first; nil means DefaultAEADs

	// PassiveRole makes an active opener send b = 1, so that it plays B in a
	// simultaneous open. A passive opener always does.
	PassiveRole bool

	// ApplicationAware is our application-aware bit. RequireApplicationAware turns
	// encryption off if the peer's is not set (RFC 8547, section 4.3).
	ApplicationAware, RequireApplicationAware bool

	// Offer is a session to resume when we open, nil for none. The negotiation does
	// not own it: the caller has claimed it for this connection alone.
	Offer *Resumable

	// Lookup finds, and claims, the session of which half is the peer's identifier
	// half when we are opened to. nil, or a nil result, answers with a fresh key
	// exchange.
	Lookup func(t TEP, half [IdentifierHalfLen]byte) *Resumable

	// ShortNonce makes the nonce of a resumption shorter than 8 bytes, by as many
	// bytes. Without a nonce a cloned machine may repeat keys.
	ShortNonce int
}

// withDefaults returns o with nil replaced, or why o makes no sense.
func (o Options) withDefaults() (Options, error) {
	if o.TEPs == nil {
		o.TEPs = DefaultTEPs()
	}
	if o.AEADs == nil {
		o.AEADs = DefaultAEADs()
	}
	if len(o.TEPs) == 0 || len(o.AEADs) == 0 {
		return o, errors.New("tcpcrypt: no TEPs or no AEADs in Options")
	}
	for i, t := range o.TEPs {
		if !t.known() || slices.Contains(o.TEPs[:i], t) {
			return o, fmt.Errorf("tcpcrypt: TEP %v in Options is unknown or there twice", t)
		}
	}
	for i, a := range o.AEADs {
		if !a.known() || slices.Contains(o.AEADs[:i], a) {
			return o, fmt.Errorf("tcpcrypt: AEAD %v in Options is unknown or there twice", a)
		}
	}
	if o.ShortNonce < 0 || o.ShortNonce > maxNonceLen {
		return o, fmt.Errorf("tcpcrypt: ShortNonce is %d, want 0 to %d", o.ShortNonce, maxNonceLen)
	}
	return o, nil
}

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
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	n := &Negotiation{o: o, active: active}
	if active {
		n.offer = o.Offer
	}
	return n, nil
}

// SYNOption returns the ENO option for our SYN or SYN-ACK, kind and length included,
// without padding, at most space bytes long. It is the same at each call. nil means
// none, and that ENO is disabled for this connection.
func (n *Negotiation) SYNOption(space int) []byte {
	switch {
	case n.phase == phaseOffered || n.phase == phaseEncrypted:
		return n.mine.raw
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
	return n.mine.raw
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
	if n.offer != nil && !slices.Contains(n.o.TEPs, n.offer.tep) {
		n.offer = nil
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
		n.offer, n.nonce = nil, nil
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
	for _, t := range n.o.TEPs {
		sub, ok := n.peer.find(t)
		if !ok {
			continue
		}
		subs[1] = suboption{glt: byte(t)}
		if sub.resumes() && n.o.Lookup != nil {
			if r := n.o.Lookup(t, [halfLen]byte(sub.data)); r != nil {
				n.found = r
				subs[1].v, subs[1].data = true, n.resumptionData(r)
				if raw := buildENO(subs); len(raw) <= space {
					return raw
				}
				n.found, n.nonce = nil, nil
				subs[1] = suboption{glt: byte(t)}
			}
		}
		if raw := buildENO(subs); len(raw) <= space {
			return raw
		}
		return nil
	}
	n.disable(ReasonNoCommonTEP)
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

// resumptionData is our identifier half of r and a fresh nonce.
func (n *Negotiation) resumptionData(r *Resumable) []byte {
	n.nonce = make([]byte, maxNonceLen-n.o.ShortNonce)
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
		if c := n.choose(); !c.ok {
			n.disable(c.reason)
		}
	}
}

// ReceiveACK is told of the first segment with ACK that TCP accepted, and decides:
// for an active opener normally the SYN-ACK (syn is true), for a passive one the
// handshake's last segment. tcpOptions is borrowed. Later calls are ignored.
func (n *Negotiation) ReceiveACK(tcpOptions []byte, syn bool) {
	if n.phase == phasePlain || n.phase == phaseEncrypted {
		return
	}
	if n.phase != phaseOffered {
		n.disable(ReasonNoENO) // we sent none
		return
	}
	if syn && !n.heard {
		o, ok := receivedENO(tcpOptions)
		if !ok {
			n.disable(ReasonNoENO)
			return
		}
		n.peer, n.heard = o, true
	} else if _, count := findENO(tcpOptions); !n.heard || count == 0 {
		n.disable(ReasonStripped)
		return
	}
	c := n.choose()
	if !c.ok {
		n.disable(c.reason)
		return
	}
	if n.o.RequireApplicationAware && n.peer.global()&awareBit == 0 {
		n.disable(ReasonPolicy)
		return
	}
	n.chosen, n.phase = c, phaseEncrypted
}

func (n *Negotiation) choose() choice {
	return choose(n.mine, n.peer, func(t TEP, a, b []byte) bool {
		r := n.resumable()
		if r == nil || r.tep != t {
			return false
		}
		own, other := r.halves()
		theirs := b
		if n.mine.global()&passiveBit != 0 {
			theirs = a
		}
		ours := a
		if n.mine.global()&passiveBit != 0 {
			ours = b
		}
		return [halfLen]byte(ours) == own && [halfLen]byte(theirs) == other
	})
}

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
	return newKeyExchange(o, n.transcript(), n.o.AEADs)
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
	return r.resume(o, sn)
}
