package wirepeer

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Flags are TCP's.
type Flags uint8

// The flags of a TCP header.
const (
	FIN Flags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
)

// Has reports whether all of them are set.
func (f Flags) Has(all Flags) bool { return f&all == all }

func (f Flags) String() string {
	var names []string
	for i, name := range []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, "|")
}

// A Segment is one TCP segment in one IP packet.
type Segment struct {
	Src, Dst netip.AddrPort
	Seq, Ack uint32
	Flags    Flags
	Window   uint16
	Options  []byte // padded to a multiple of 4 by Packet
	Payload  []byte
	Urgent   uint16 // TCP's urgent pointer
}

func (s *Segment) String() string {
	return fmt.Sprintf("%v > %v %v seq %d ack %d win %d opts %x len %d", s.Src, s.Dst, s.Flags, s.Seq, s.Ack, s.Window, s.Options, len(s.Payload))
}

// end is the sequence number behind the segment.
func (s *Segment) end() uint32 {
	n := s.Seq + uint32(len(s.Payload))
	if s.Flags.Has(SYN) {
		n++
	}
	if s.Flags.Has(FIN) {
		n++
	}
	return n
}

const (
	protocolTCP   = 6
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	tcpHeaderLen  = 20
	maxOptionsLen = 40
	ttl           = 64

	ipv4VersionIHL = 0x45
	ipv6Version    = 0x60
	ipv4NoFragment = 0x4000
)

// ParseSegment reads an IP packet that holds a whole TCP segment; ok is false for all
// other packets, and for wrong checksums. The segment aliases nothing of the packet.
func ParseSegment(packet []byte) (s Segment, ok bool) {
	if src, dst, tcp, ok := splitIP(packet); !ok || checksum(src, dst, tcp) != 0 {
		return s, false
	}
	return ParseCaptured(packet)
}

// ParseCaptured is ParseSegment for packets whose checksum has been left to a device.
func ParseCaptured(packet []byte) (s Segment, ok bool) {
	src, dst, tcp, ok := splitIP(packet)
	if !ok || len(tcp) < tcpHeaderLen {
		return s, false
	}
	dataAt := int(tcp[12]>>4) * 4
	if dataAt < tcpHeaderLen || dataAt > len(tcp) {
		return s, false
	}
	return Segment{
		Src:     netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp)),
		Dst:     netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:])),
		Seq:     binary.BigEndian.Uint32(tcp[4:]),
		Ack:     binary.BigEndian.Uint32(tcp[8:]),
		Flags:   Flags(tcp[13]),
		Window:  binary.BigEndian.Uint16(tcp[14:]),
		Urgent:  binary.BigEndian.Uint16(tcp[18:]),
		Options: slices.Clone(tcp[tcpHeaderLen:dataAt]),
		Payload: slices.Clone(tcp[dataAt:]),
	}, true
}

// splitIP finds the TCP segment in a packet.
func splitIP(packet []byte) (src, dst netip.Addr, tcp []byte, ok bool) {
	if len(packet) == 0 {
		return
	}
	switch packet[0] >> 4 {
	case 4:
		headerLen := int(packet[0]&0xf) * 4
		if headerLen < ipv4HeaderLen || len(packet) < headerLen || packet[9] != protocolTCP {
			return
		}
		total := int(binary.BigEndian.Uint16(packet[2:]))
		if total < headerLen || total > len(packet) || binary.BigEndian.Uint16(packet[6:])&^ipv4NoFragment != 0 {
			return
		}
		src, dst = netip.AddrFrom4([4]byte(packet[12:])), netip.AddrFrom4([4]byte(packet[16:]))
		return src, dst, packet[headerLen:total], true
	case 6:
		if len(packet) < ipv6HeaderLen || packet[6] != protocolTCP {
			return
		}
		total := ipv6HeaderLen + int(binary.BigEndian.Uint16(packet[4:]))
		if total > len(packet) {
			return
		}
		src, dst = netip.AddrFrom16([16]byte(packet[8:])), netip.AddrFrom16([16]byte(packet[24:]))
		return src, dst, packet[ipv6HeaderLen:total], true
	}
	return
}

// Packet is the segment as an IP packet, with right checksums.
func (s *Segment) Packet() []byte {
	options := slices.Clone(s.Options)
	for len(options)%4 != 0 {
		options = append(options, optionEnd)
	}
	tcpLen := tcpHeaderLen + len(options) + len(s.Payload)
	src, dst := s.Src.Addr(), s.Dst.Addr()

	var p []byte
	if src.Is4() {
		p = append(p, ipv4VersionIHL, 0)
		p = binary.BigEndian.AppendUint16(p, uint16(ipv4HeaderLen+tcpLen))
		p = append(p, 0, 0, ipv4NoFragment>>8, 0, ttl, protocolTCP, 0, 0)
		p = append(append(p, src.AsSlice()...), dst.AsSlice()...)
		binary.BigEndian.PutUint16(p[10:], ^fold(sum(0, p)))
	} else {
		p = append(p, ipv6Version, 0, 0, 0)
		p = binary.BigEndian.AppendUint16(p, uint16(tcpLen))
		p = append(p, protocolTCP, ttl)
		p = append(append(p, src.AsSlice()...), dst.AsSlice()...)
	}
	at := len(p)
	p = binary.BigEndian.AppendUint16(p, s.Src.Port())
	p = binary.BigEndian.AppendUint16(p, s.Dst.Port())
	p = binary.BigEndian.AppendUint32(p, s.Seq)
	p = binary.BigEndian.AppendUint32(p, s.Ack)
	p = append(p, byte((tcpHeaderLen+len(options))/4)<<4, byte(s.Flags))
	p = binary.BigEndian.AppendUint16(p, s.Window)
	p = append(p, 0, 0) // checksum
	p = binary.BigEndian.AppendUint16(p, s.Urgent)
	p = append(append(p, options...), s.Payload...)
	binary.BigEndian.PutUint16(p[at+16:], checksum(src, dst, p[at:]))
	return p
}

// checksum is TCP's over the segment and its pseudo-header: what to put into the
// checksum field if that is 0, and 0 if it holds the right one.
func checksum(src, dst netip.Addr, tcp []byte) uint16 {
	n := sum(sum(0, src.AsSlice()), dst.AsSlice())
	n += protocolTCP + uint32(len(tcp))
	return ^fold(sum(n, tcp))
}

// sum adds 16-bit words; an odd byte is padded behind.
func sum(n uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		n += uint32(b[0])<<8 | uint32(b[1])
		if n >= 1<<31 {
			n = n&0xffff + n>>16
		}
	}
	if len(b) == 1 {
		n += uint32(b[0]) << 8
	}
	return n
}

func fold(n uint32) uint16 {
	for n > 0xffff {
		n = n&0xffff + n>>16
	}
	return uint16(n)
}
