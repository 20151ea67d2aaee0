package stack

import (
	"log/slog"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// newTCP makes the TCP of the stack: ours, with ENO on the wire side's legs and the
// path MTU of each side.
func (s *Stack) newTCP() nstack.TransportProtocolFactory {
	return tcp.NewProtocolWithOptions(tcp.Options{Extension: extension{s}, MTU: s.mtu})
}

// mtu is the MTU, in bytes, of the side that a connection is on.
func (s *Stack) mtu(local, remote netip.Addr) uint32 {
	if s.isStack(local) && s.opt.WireMTU != nil {
		if mtu := s.opt.WireMTU(remote); mtu != 0 {
			return mtu
		}
	}
	return s.opt.MTU
}

// An extension gives the wire side of an inbound connection the Negotiator that
// acceptIn made. Outbound wire sides are given theirs before they connect, and host
// sides have none.
type extension struct{ s *Stack }

// Active implements tcp.Extension.
func (extension) Active(tcp.Conn) tcp.Negotiator { return nil }

// Passive implements tcp.Extension.
func (e extension) Passive(c tcp.Conn, _ []byte) tcp.Negotiator {
	p := e.s.syns.get(nstack.TransportEndpointID{
		LocalAddress: fromAddr(c.Local.Addr()), LocalPort: c.Local.Port(),
		RemoteAddress: fromAddr(c.Remote.Addr()), RemotePort: c.Remote.Port(),
	})
	if p == nil || p.dir != Inbound || p.neg == nil {
		return nil
	}
	return p.neg
}

// Cookie implements tcp.Extension. The stack has no listeners, so there are no cookies;
// were there one, its connection would be in clear without a rule having been asked.
func (e extension) Cookie(c tcp.Conn) error {
	if _, rule, ok := e.s.inboundRule(c.Remote, c.Local); ok && rule.Policy == Require {
		return errPlain
	}
	return nil
}

// newNegotiator makes what negotiates for the wire side to or from peer under rule; nil
// under bypass. Options that make no sense are replaced by the defaults, so that a
// mistake in them never means plaintext.
func (s *Stack) newNegotiator(rule Rule, peer netip.AddrPort, active bool) *ENO {
	if rule.Policy == Bypass {
		return nil
	}
	o := NegotiatorOptions{
		Options: rule.Options, Active: active, Require: rule.Policy == Require,
		Peer: peer, Cache: s.opt.Cache, NoResume: rule.NoResumption, NoKeep: rule.NoResumption,
	}
	eno, err := NewNegotiator(o)
	if err != nil {
		s.log.Error("bad options of a rule: using the defaults", slog.String("rule", rule.Label), slog.Any("err", err))
		o.Options = tcpcrypt.Options{} // they are right
		eno, _ = NewNegotiator(o)
	}
	return eno
}

// canEncrypt reports whether a remote's SYN with these TCP options may lead to an
// encrypted connection under rule, and why not.
func canEncrypt(rule Rule, synOptions []byte) (why tcpcrypt.Reason, ok bool) {
	const space = 20 // what other options leave of a SYN-ACK; a fresh answer takes 5
	o := rule.Options
	o.Lookup, o.Offer = nil, nil // a trial: no session is claimed for it
	n, err := tcpcrypt.NewNegotiation(o, false)
	if err != nil {
		return "", true // newNegotiator deals with that
	}
	n.ReceiveSYN(synOptions)
	n.SYNOption(space)
	outcome, decided := n.Outcome()
	return outcome.Reason, !decided
}

// setNegotiator makes neg negotiate for ep, which is not connected yet; nil makes ep plain.
func setNegotiator(ep tcpip.Endpoint, neg *ENO) {
	se, ok := tcp.AsSecure(ep)
	switch {
	case !ok:
	case neg == nil:
		se.SetNegotiator(nil) // not a nil *ENO
	default:
		se.SetNegotiator(neg)
	}
}

// decidedOf is closed when ep is established and it is known whether it is encrypted, or
// has failed; nil if ep is plain.
func decidedOf(ep tcpip.Endpoint) <-chan struct{} {
	if se, ok := tcp.AsSecure(ep); ok {
		return se.Decided()
	}
	return nil
}

// decided reports whether decidedOf(ep) is closed or nil.
func decided(ep tcpip.Endpoint) bool {
	select {
	case <-decidedOf(ep):
		return true
	default:
		return decidedOf(ep) == nil
	}
}

// readyOf is closed when ep carries plaintext, or has failed; nil if it is plain.
func readyOf(ep tcpip.Endpoint) <-chan struct{} {
	if se, ok := tcp.AsSecure(ep); ok {
		return se.Ready()
	}
	return nil
}

// settle records what neg, nil for none, came to. Called when ENO has decided, and
// again when the key exchange is complete.
func (c *conn) settle(neg *ENO) encryption {
	e := encryption{reason: reasonPolicy}
	if c.shunned {
		e.reason = reasonFallback
	}
	if neg != nil {
		o, decided := neg.Outcome()
		switch {
		case !decided:
			e.reason = reasonOpening
		case !o.Encrypted:
			e.reason, e.peerAware = o.Reason, o.PeerApplicationAware
		default:
			e = encryption{encrypted: true, role: o.Role, tep: o.TEP, resumed: o.Resumed, peerAware: o.PeerApplicationAware}
			if session := neg.TCPCryptSession(); session != nil {
				id := session.ID()
				e.aead, e.sessionID = session.AEAD(), id[:]
			}
		}
	}
	c.decide(e, neg)
	return e
}

// secureError returns the cause for which ep's protection failed, nil if it has none or
// did not fail.
func secureError(ep tcpip.Endpoint) error {
	if se, ok := tcp.AsSecure(ep); ok {
		return se.Err()
	}
	return nil
}
