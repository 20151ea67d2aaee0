package stack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// An icmpError is a "destination unreachable" of either family.
type icmpError struct {
	code uint8 // ICMPv4's or ICMPv6's
}

// parseUnreachable reads an IP packet as an ICMP error "destination unreachable" about a
// TCP segment, whose addresses it returns. Checksums are left to netstack and the kernel:
// the most that a wrong packet does is to end a dial that has not been answered.
func parseUnreachable(b []byte) (from, to netip.AddrPort, e icmpError, ok bool) {
	var quoted []byte
	switch header.IPVersion(b) {
	case header.IPv4Version:
		ip := header.IPv4(b)
		if !ip.IsValid(len(b)) || ip.TransportProtocol() != header.ICMPv4ProtocolNumber {
			return from, to, e, false
		}
		icmp := header.ICMPv4(ip.Payload())
		if len(icmp) < header.ICMPv4MinimumSize || icmp.Type() != header.ICMPv4DstUnreachable ||
			icmp.Code() == header.ICMPv4FragmentationNeeded {
			return from, to, e, false
		}
		e.code, quoted = uint8(icmp.Code()), icmp.Payload()
	case header.IPv6Version:
		ip := header.IPv6(b)
		if !ip.IsValid(len(b)) || ip.NextHeader() != uint8(header.ICMPv6ProtocolNumber) {
			return from, to, e, false
		}
		icmp := header.ICMPv6(ip.Payload())
		if len(icmp) < header.ICMPv6DstUnreachableMinimumSize || icmp.Type() != header.ICMPv6DstUnreachable {
			return from, to, e, false
		}
		e.code, quoted = uint8(icmp.Code()), icmp.Payload()
	default:
		return from, to, e, false
	}
	from, to, _, ok = parseTCP(quoted)
	return from, to, e, ok
}

// parseTCP reads the addresses of a TCP segment in an IP packet, which may be cut short
// anywhere behind the ports, and returns what there is from the TCP header on (aliasing b).
// Fragments and IPv6 extension headers are not TCP to it.
func parseTCP(b []byte) (src, dst netip.AddrPort, segment []byte, ok bool) {
	var s, d netip.Addr
	switch header.IPVersion(b) {
	case header.IPv4Version:
		if len(b) < header.IPv4MinimumSize {
			return src, dst, nil, false
		}
		ip := header.IPv4(b)
		hlen := int(ip.HeaderLength())
		if ip.Protocol() != uint8(header.TCPProtocolNumber) || ip.FragmentOffset() != 0 || hlen < header.IPv4MinimumSize || len(b) < hlen {
			return src, dst, nil, false
		}
		s, d, segment = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[hlen:]
	case header.IPv6Version:
		if len(b) < header.IPv6MinimumSize || header.IPv6(b).NextHeader() != uint8(header.TCPProtocolNumber) {
			return src, dst, nil, false
		}
		s, d, segment = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), b[header.IPv6MinimumSize:]
	default:
		return src, dst, nil, false
	}
	if len(segment) < 4 {
		return src, dst, nil, false
	}
	src = netip.AddrPortFrom(s, binary.BigEndian.Uint16(segment))
	dst = netip.AddrPortFrom(d, binary.BigEndian.Uint16(segment[2:]))
	return src, dst, segment, true
}

// unreachable hears an error about a segment that went from one address to another.
func (s *Stack) unreachable(from, to netip.AddrPort, e icmpError) {
	if s.isStack(from.Addr()) {
		s.syns.icmp(from.Port(), to, e)
	}
}

// unreachableCode is the code of the ICMP error that netstack made err of, as far as can
// be told; false if err is none of those.
func unreachableCode(err tcpip.Error, v4 bool) (icmpError, bool) {
	type codes struct{ v4, v6 uint8 }
	var c codes
	switch err.(type) {
	case *tcpip.ErrHostUnreachable, *tcpip.ErrHostDown:
		c = codes{uint8(header.ICMPv4HostUnreachable), uint8(header.ICMPv6AddressUnreachable)}
	case *tcpip.ErrNetworkUnreachable:
		c = codes{uint8(header.ICMPv4NetUnreachable), uint8(header.ICMPv6NetworkUnreachable)}
	case *tcpip.ErrUnknownProtocolOption: // netstack's form of "protocol unreachable"
		c = codes{uint8(header.ICMPv4ProtoUnreachable), uint8(header.ICMPv6PortUnreachable)}
	case *tcpip.ErrNotSupported: // "source route failed"
		c = codes{uint8(header.ICMPv4SourceRouteFailed), uint8(header.ICMPv6AddressUnreachable)}
	case *tcpip.ErrNoNet: // "source host isolated"
		c = codes{uint8(header.ICMPv4SourceHostIsolated), uint8(header.ICMPv6AddressUnreachable)}
	default:
		return icmpError{}, false
	}
	if v4 {
		return icmpError{c.v4}, true
	}
	return icmpError{c.v6}, true
}

// buildUnreachable makes the ICMP error that tells the sender of syn (its IP and TCP
// header) that its destination is unreachable, as from the router at from.
func buildUnreachable(from netip.Addr, syn []byte, e icmpError) []byte {
	if from.Is4() {
		b := make([]byte, header.IPv4MinimumSize+header.ICMPv4MinimumSize+len(syn))
		icmp := header.ICMPv4(b[header.IPv4MinimumSize:])
		icmp.SetType(header.ICMPv4DstUnreachable)
		icmp.SetCode(header.ICMPv4Code(e.code))
		copy(icmp.Payload(), syn)
		icmp.SetChecksum(^checksum.Checksum(icmp, 0))
		ip := header.IPv4(b)
		ip.Encode(&header.IPv4Fields{
			TotalLength: uint16(len(b)),
			TTL:         64,
			Protocol:    uint8(header.ICMPv4ProtocolNumber),
			SrcAddr:     fromAddr(from),
			DstAddr:     header.IPv4(syn).SourceAddress(),
		})
		ip.SetChecksum(^ip.CalculateChecksum())
		return b
	}
	b := make([]byte, header.IPv6MinimumSize+header.ICMPv6DstUnreachableMinimumSize+len(syn))
	icmp := header.ICMPv6(b[header.IPv6MinimumSize:])
	icmp.SetType(header.ICMPv6DstUnreachable)
	icmp.SetCode(header.ICMPv6Code(e.code))
	copy(icmp.Payload(), syn)
	src, dst := fromAddr(from), header.IPv6(syn).SourceAddress()
	icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: src, Dst: dst}))
	header.IPv6(b).Encode(&header.IPv6Fields{
		PayloadLength:     uint16(len(icmp)),
		TransportProtocol: header.ICMPv6ProtocolNumber,
		HopLimit:          64,
		SrcAddr:           src,
		DstAddr:           dst,
	})
	return b
}

// sendUnreachable tells the program that dialled p that its destination is unreachable.
func (s *Stack) sendUnreachable(p *pending, e icmpError) error {
	from := s.opt.Stack6
	if p.dst.Addr().Is4() {
		from = s.opt.Stack4
	}
	return s.inject(buildUnreachable(from, p.syn, e))
}

func (s *Stack) inject(packet []byte) error {
	if s.opt.InjectPacket == nil {
		return errNoInject
	}
	return s.opt.InjectPacket(packet)
}
