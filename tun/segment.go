package tun

import (
	"encoding/binary"
	"iter"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// maxHeaders is the room for the headers of one segment, in bytes: IPv4 and TCP with
// all options fit, and IPv6 with any extension headers netstack makes.
const maxHeaders = 256

// A segmenter cuts a TCP super-segment into segments, as a network card with TSO
// would. The zero value is ready.
type segmenter struct {
	hdr [maxHeaders]byte
}

// segments yields, in order, headers and payload of the segments of packet, with at
// most mss bytes of payload each and with checksums that are right. packet is a whole
// TCP packet; its checksums are not looked at. What is yielded is good until the next
// one is: hdr is the segmenter's, payload is part of packet.
//
// The IPv4 identification counts up (RFC 6864 asks for different ones unless DF is
// set); FIN and PSH are on the last segment only, CWR on the first only (RFC 3168,
// section 6.1.2).
func (s *segmenter) segments(packet []byte, mss int) (iter.Seq2[[]byte, []byte], error) {
	l, err := parseLayout(packet, len(packet))
	if err != nil || l.proto != protoTCP || l.fragment || mss <= 0 || l.length < l.l4+header.TCPMinimumSize {
		return nil, ErrMalformed
	}
	packet = packet[:l.length]
	tcpLen := int(header.TCP(packet[l.l4:]).DataOffset())
	hdrLen := l.l4 + tcpLen
	if tcpLen < header.TCPMinimumSize || hdrLen > len(packet) || hdrLen > len(s.hdr) {
		return nil, ErrMalformed
	}
	return func(yield func(hdr, payload []byte) bool) {
		rest := packet[hdrLen:]
		for i := 0; i == 0 || len(rest) > 0; i++ {
			payload := rest[:min(mss, len(rest))]
			offset := i * mss
			rest = rest[len(payload):]
			hdr := s.hdr[:copy(s.hdr[:], packet[:hdrLen])]
			l.finishSegment(hdr, payload, i, offset, len(rest) == 0)
			if !yield(hdr, payload) {
				return
			}
		}
	}, nil
}

// finishSegment turns a copy of the super-segment's headers into those of segment i,
// whose payload began offset bytes into the super-segment's.
func (l layout) finishSegment(hdr, payload []byte, i, offset int, last bool) {
	size := len(hdr) + len(payload)
	if l.v6 {
		binary.BigEndian.PutUint16(hdr[4:], uint16(size-header.IPv6MinimumSize))
	} else {
		ip := header.IPv4(hdr)
		ip.SetTotalLength(uint16(size))
		ip.SetID(ip.ID() + uint16(i))
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
	}
	const flagCWR = 0x80
	tcp := header.TCP(hdr[l.l4:])
	tcp.SetSequenceNumber(tcp.SequenceNumber() + uint32(offset))
	flags := tcp.Flags()
	if !last {
		flags &^= header.TCPFlagFin | header.TCPFlagPsh
	}
	if i > 0 {
		flags &^= flagCWR
	}
	tcp.SetFlags(uint8(flags))
	tcp.SetChecksum(0)
	sum := checksum.Checksum(tcp, l.pseudoChecksum(hdr, size-l.l4))
	tcp.SetChecksum(^checksum.Combine(sum, checksum.Checksum(payload, 0)))
}
