package tcp

import (
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// mtuCap returns the cap of the options on the path MTU of a route, 0 for none.
func (p *protocol) mtuCap(local, remote tcpip.Address) uint32 {
	if p.ext == nil || p.ext.MTU == nil {
		return 0
	}
	return p.ext.MTU(addrOf(local), addrOf(remote))
}

func ipHeaderLen(netProto tcpip.NetworkProtocolNumber) uint32 {
	if netProto == header.IPv6ProtocolNumber {
		return header.IPv6MinimumSize
	}
	return header.IPv4MinimumSize
}

// mssOf returns the MSS for an MTU that includes the IP header.
func mssOf(mtu uint32, netProto tcpip.NetworkProtocolNumber) uint16 {
	headers := ipHeaderLen(netProto) + header.TCPMinimumSize
	if mtu <= headers {
		return 1
	}
	return uint16(min(mtu-headers, 0xffff))
}

// calculateAdvertisedMSS wraps upstream's, which knows the NIC alone. One NIC of ours
// has two sides: the host's wants the TUN device's large MSS, the wire's that of the
// path.
func calculateAdvertisedMSS(userMSS uint16, r *stack.Route) uint16 {
	mss := calculateAdvertisedMSSUpstream(userMSS, r)
	if mtu := protocolFromStack(r.Stack()).mtuCap(r.LocalAddress(), r.RemoteAddress()); mtu != 0 {
		mss = min(mss, mssOf(mtu, r.NetProto()))
	}
	return mss
}

// pathMSS returns the largest segment for the connection's path where the options
// or SetMTU know one, else 0.
//
// +checklocks:e.mu
func (e *Endpoint) pathMSS() uint16 {
	mtu := e.protocol.mtuCap(e.ID.LocalAddress, e.ID.RemoteAddress)
	if x := e.ext; x != nil && x.mtu != 0 && (mtu == 0 || x.mtu < mtu) {
		mtu = x.mtu
	}
	if mtu == 0 {
		return 0
	}
	return mssOf(mtu, e.route.NetProto())
}

// updateMaxPayloadSize wraps upstream's. When a router says that a packet was too
// big, all of that size that is in flight has met the same end. Upstream takes one
// packet off the count and rewinds, and then finds a hole at each timeout; we take
// all of them as lost and send them again at once. It is no congestion: the window
// keeps its size in bytes.
//
// +checklocks:s.ep.mu
func (s *sender) updateMaxPayloadSize(mtu, count int) {
	if s.ep.protocol.ext == nil || count == 0 {
		s.updateMaxPayloadSizeUpstream(mtu, count)
		return
	}
	old := s.MaxPayloadSize
	payload := max(mtu-header.TCPMinimumSize-s.ep.maxOptionSize(), 1)
	if payload >= old {
		return
	}
	packets := s.joinInFlight(payload)
	s.Outstanding = 0
	// Whatever is not sent again now would look lost to RACK, which then halves the
	// window and counts it as in flight all the same.
	s.SndCwnd = max((s.SndCwnd*old+payload-1)/payload, packets)
	// What is sent again is no measure of the round trip.
	s.RTTMeasureSeqNum = s.SndNxt
	s.updateMaxPayloadSizeUpstream(mtu, count)
}

// joinLimit bounds a joined segment, in bytes, since cutting it up again costs more
// the longer it is.
const joinLimit = 64 << 10

// joinInFlight joins what was sent and not acknowledged to as few segments as can be,
// and returns how many packets of size payload they make. Each segment cut by itself
// would leave a short packet behind every full one.
//
// +checklocks:s.ep.mu
func (s *sender) joinInFlight(payload int) (packets int) {
	sacked := func(seg *segment) bool {
		return s.ep.SACKPermitted && s.ep.scoreboard.IsSACKED(seg.sackBlock())
	}
	sent := func(seg *segment) bool {
		return seg != nil && seg.xmitCount > 0 && seg.payloadSize() > 0
	}
	for seg := s.writeList.Front(); sent(seg); seg = seg.Next() {
		seg.lost = false
		if sacked(seg) {
			continue
		}
		for next := seg.Next(); sent(next) && !sacked(next) && seg.payloadSize()+next.payloadSize() <= joinLimit; next = seg.Next() {
			if next == s.writeNext {
				s.updateWriteNext(seg)
			}
			seg.merge(next)
			s.writeList.Remove(next)
			next.DecRef()
		}
		packets += s.pCount(seg, payload)
	}
	return packets
}

// setMTU caps the MTU of the path, with the IP header.
func (e *Endpoint) setMTU(mtu uint32) {
	e.LockUser()
	defer e.UnlockUser()
	e.ext.mtu = mtu
	if mtu == 0 {
		return
	}
	netProto := e.NetProto
	if e.route != nil {
		netProto = e.route.NetProto()
	}
	if mss := mssOf(mtu, netProto); e.userMSS == 0 || mss < e.userMSS {
		e.userMSS = mss
	}
	if e.snd != nil && e.EndpointState().connected() {
		e.snd.updateMaxPayloadSize(int(max(mtu, ipHeaderLen(netProto))-ipHeaderLen(netProto)), 1)
	}
}
