package stack

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A split is the one link made into two NICs by destination: what is sent to S arrives
// on the wire side's, all else on the host side's.
//
// Two, because a NIC that answers for captured destinations may use their addresses as
// source, and netstack then picks whatever looks nearest to the remote. The wire side's
// knows S alone, so nothing it sends can carry another source.
type split struct {
	link           nstack.LinkEndpoint
	stack4, stack6 tcpip.Address // zero: no such family
	unreachable    func(from, to netip.AddrPort, e icmpError)

	host, wire *side

	mu       sync.Mutex
	attached int // sides that are; guarded by mu
	closed   sync.Once
}

func newSplit(link nstack.LinkEndpoint, stack4, stack6 netip.Addr, unreachable func(from, to netip.AddrPort, e icmpError)) *split {
	sp := &split{link: link, unreachable: unreachable}
	if stack4.IsValid() {
		sp.stack4 = fromAddr(stack4)
	}
	if stack6.IsValid() {
		sp.stack6 = fromAddr(stack6)
	}
	sp.host, sp.wire = &side{LinkEndpoint: link, sp: sp}, &side{LinkEndpoint: link, sp: sp}
	link.SetOnCloseAction(func() {
		sp.host.closing()
		sp.wire.closing()
	})
	return sp
}

// DeliverNetworkPacket implements stack.NetworkDispatcher. It is the link's only
// dispatcher, so it hears ICMP errors too: netstack keeps no code of them, and of
// ICMPv6's knows two of eight.
func (sp *split) DeliverNetworkPacket(proto tcpip.NetworkProtocolNumber, pkt *nstack.PacketBuffer) {
	to := sp.host
	switch proto {
	case ipv4.ProtocolNumber:
		b, ok := pkt.Data().PullUp(header.IPv4MinimumSize)
		if !ok {
			return
		}
		ip := header.IPv4(b)
		if ip.DestinationAddress() == sp.stack4 {
			to = sp.wire
			if ip.Protocol() == uint8(header.ICMPv4ProtocolNumber) {
				sp.hear(pkt)
			}
		}
	case ipv6.ProtocolNumber:
		b, ok := pkt.Data().PullUp(header.IPv6MinimumSize)
		if !ok {
			return
		}
		ip := header.IPv6(b)
		if ip.DestinationAddress() == sp.stack6 {
			to = sp.wire
			if ip.NextHeader() == uint8(header.ICMPv6ProtocolNumber) {
				sp.hear(pkt)
			}
		}
	}
	if d := to.dispatcher.Load(); d != nil {
		(*d).DeliverNetworkPacket(proto, pkt)
	}
}

// DeliverLinkPacket implements stack.NetworkDispatcher and does nothing: there are no
// packet sockets.
func (*split) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *nstack.PacketBuffer) {}

func (sp *split) hear(pkt *nstack.PacketBuffer) {
	if from, to, e, ok := parseUnreachable(pkt.Data().AsRange().ToSlice()); ok {
		sp.unreachable(from, to, e)
	}
}

// A side is the link as one of the two NICs sees it.
type side struct {
	nstack.LinkEndpoint // the shared one
	sp                  *split
	dispatcher          atomic.Pointer[nstack.NetworkDispatcher]
	onClose             atomic.Pointer[func()]
}

var _ nstack.GSOEndpoint = (*side)(nil)

// Attach implements stack.LinkEndpoint. The link is attached while one of the sides is.
func (s *side) Attach(d nstack.NetworkDispatcher) {
	sp := s.sp
	sp.mu.Lock()
	defer sp.mu.Unlock()
	was := s.dispatcher.Load() != nil
	switch {
	case d != nil:
		s.dispatcher.Store(&d)
		if !was {
			if sp.attached++; sp.attached == 1 {
				sp.link.Attach(sp)
			}
		}
	case was:
		s.dispatcher.Store(nil)
		if sp.attached--; sp.attached == 0 {
			sp.link.Attach(nil)
		}
	}
}

// IsAttached implements stack.LinkEndpoint.
func (s *side) IsAttached() bool { return s.dispatcher.Load() != nil }

// Close implements stack.LinkEndpoint. The first side to close closes the link.
func (s *side) Close() { s.sp.closed.Do(s.LinkEndpoint.Close) }

// SetOnCloseAction implements stack.LinkEndpoint.
func (s *side) SetOnCloseAction(f func()) {
	if f == nil {
		s.onClose.Store(nil)
		return
	}
	s.onClose.Store(&f)
}

func (s *side) closing() {
	if f := s.onClose.Load(); f != nil {
		(*f)()
	}
}

// GSOMaxSize implements stack.GSOEndpoint, in bytes.
func (s *side) GSOMaxSize() uint32 {
	if e, ok := s.LinkEndpoint.(nstack.GSOEndpoint); ok {
		return e.GSOMaxSize()
	}
	return 0
}

// SupportedGSO implements stack.GSOEndpoint.
func (s *side) SupportedGSO() nstack.SupportedGSO {
	if e, ok := s.LinkEndpoint.(nstack.GSOEndpoint); ok {
		return e.SupportedGSO()
	}
	return nstack.GSONotSupported
}
