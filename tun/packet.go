package tun

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// maxPacket is the largest IP packet, in bytes: the length field's 16 bits.
const maxPacket = 65535

// Protocol numbers (IANA) that the layout of a packet depends on.
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoAH       = 51
	protoICMPv6   = 58
	protoDestOpts = 60
	protoUnknown  = 255 // the extension headers go on behind the bytes that were looked at
)

// A layout says where things are in an IP packet.
type layout struct {
	v6       bool
	proto    uint8 // of the transport header, or protoUnknown
	l4       int   // offset of the transport header, in bytes from the IP header
	length   int   // of the whole packet by its own IP header, in bytes
	fragment bool  // one of several: has no transport checksum of its own
}

// parseLayout reads the IP header, and for IPv6 the extension headers (RFC 8200,
// section 4), of a packet of total bytes. b holds its beginning, or all of it. The
// fields it returns are safe as offsets: l4 <= length <= total.
func parseLayout(b []byte, total int) (layout, error) {
	if len(b) == 0 || len(b) > total {
		return layout{}, ErrMalformed
	}
	switch b[0] >> 4 {
	case 4:
		return parseLayout4(b, total)
	case 6:
		return parseLayout6(b, total)
	default:
		return layout{}, ErrMalformed
	}
}

func parseLayout4(b []byte, total int) (layout, error) {
	if len(b) < header.IPv4MinimumSize {
		return layout{}, ErrMalformed
	}
	const moreFragments, offsetMask = 0x2000, 0x1fff
	l := layout{
		proto:    b[9],
		l4:       int(b[0]&0x0f) * 4,
		length:   int(binary.BigEndian.Uint16(b[2:])),
		fragment: binary.BigEndian.Uint16(b[6:])&(moreFragments|offsetMask) != 0,
	}
	if l.l4 < header.IPv4MinimumSize || l.l4 > len(b) || l.length < l.l4 || l.length > total {
		return layout{}, ErrMalformed
	}
	return l, nil
}

func parseLayout6(b []byte, total int) (layout, error) {
	if len(b) < header.IPv6MinimumSize {
		return layout{}, ErrMalformed
	}
	l := layout{
		v6:     true,
		proto:  b[6],
		l4:     header.IPv6MinimumSize,
		length: header.IPv6MinimumSize + int(binary.BigEndian.Uint16(b[4:])),
	}
	if l.length > total {
		return layout{}, ErrMalformed
	}
	for {
		size := 0
		switch l.proto {
		case protoHopByHop, protoRouting, protoDestOpts, protoFragment, protoAH:
		default:
			return l, nil
		}
		if l.l4+8 > l.length {
			return layout{}, ErrMalformed
		}
		if l.l4+8 > len(b) {
			l.proto = protoUnknown
			return l, nil
		}
		ext := b[l.l4:]
		switch l.proto {
		case protoFragment:
			size = 8
			const offsetMask, more = 0xfff8, 1
			l.fragment = l.fragment || binary.BigEndian.Uint16(ext[2:])&(offsetMask|more) != 0
		case protoAH: // counts in units of four, less two (RFC 4302, section 2.2)
			size = (int(ext[1]) + 2) * 4
		default:
			size = (int(ext[1]) + 1) * 8
		}
		l.proto = ext[0]
		l.l4 += size
		if l.l4 > l.length {
			return layout{}, ErrMalformed
		}
		if l.fragment { // what follows may be the middle of something
			return l, nil
		}
	}
}

// networkProtocol returns netstack's number for the packet's IP version.
func (l layout) networkProtocol() tcpip.NetworkProtocolNumber {
	if l.v6 {
		return header.IPv6ProtocolNumber
	}
	return header.IPv4ProtocolNumber
}

// checksumOffset returns where the checksum is in a transport header of protocol
// proto, in bytes, and false if it is not one of the Internet checksum.
func checksumOffset(proto uint8) (int, bool) {
	switch proto {
	case protoTCP:
		return header.TCPChecksumOffset, true
	case protoUDP:
		return 6, true
	case protoICMP, protoICMPv6:
		return 2, true
	default:
		return 0, false
	}
}

// pseudoChecksum returns the checksum of the pseudo-header of a transport packet of
// size bytes (RFC 9293, section 3.1; RFC 8200, section 8.1). Zero for ICMP on IPv4,
// which has none. packet holds at least the IP header.
func (l layout) pseudoChecksum(packet []byte, size int) uint16 {
	if l.proto == protoICMP {
		return 0
	}
	addrs := packet[12:20]
	if l.v6 {
		addrs = packet[8:40]
	}
	sum := checksum.Checksum(addrs, uint16(l.proto))
	return checksum.Combine(sum, uint16(size))
}

// fixChecksums makes the IPv4 header checksum and the transport checksum of a whole
// packet right, in place. It leaves alone what it cannot know: fragments, and other
// protocols than TCP, UDP and ICMP.
func fixChecksums(packet []byte) error {
	l, err := parseLayout(packet, len(packet))
	if err != nil {
		return err
	}
	packet = packet[:l.length]
	if !l.v6 {
		ip := header.IPv4(packet)
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
	}
	at, ok := checksumOffset(l.proto)
	if !ok || l.fragment {
		return nil
	}
	l4 := packet[l.l4:]
	if len(l4) < at+2 {
		return ErrMalformed
	}
	l.fillChecksum(packet, l4, at)
	return nil
}

// fillChecksum computes the transport checksum of packet, whose transport header
// and payload are l4, and stores it at offset at of l4.
func (l layout) fillChecksum(packet, l4 []byte, at int) {
	binary.BigEndian.PutUint16(l4[at:], 0)
	sum := ^checksum.Checksum(l4, l.pseudoChecksum(packet, len(l4)))
	if sum == 0 && l.proto == protoUDP {
		sum = 0xffff // zero on the wire means "none" (RFC 768)
	}
	binary.BigEndian.PutUint16(l4[at:], sum)
}
