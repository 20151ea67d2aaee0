package tun

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// The header in front of each packet that crosses a TUN device opened with
// IFF_VNET_HDR: virtio's network header in its legacy form (Virtual I/O Device 1.3,
// section 5.1.6; Linux, virtio_net.h and tun_vnet.h), without num_buffers and in the
// machine's byte order.
//
//	0     1        2       4        6          8           10
//	flags gso_type hdr_len gso_size csum_start csum_offset | IP packet
const vnetHeaderLen = 10

// Bits of flags.
const (
	vnetNeedsChecksum = 1 // the transport checksum is that of the pseudo-header; csum_start says where to sum from
	vnetDataValid     = 2 // someone has verified the transport checksum
)

// Values of gso_type, and a bit in it.
const (
	vnetGSONone = 0
	vnetGSOTCP4 = 1
	vnetGSOTCP6 = 4
	vnetGSOECN  = 0x80 // CWR is set, for the first segment only
)

type vnetHeader struct {
	flags      uint8
	gsoType    uint8
	hdrLen     uint16 // all headers, in bytes: the kernel copies this much together; a hint
	gsoSize    uint16 // payload of each segment, in bytes
	csumStart  uint16 // of the transport header, in bytes from the IP header
	csumOffset uint16 // of the checksum in the transport header, in bytes
}

func parseVnetHeader(b *[vnetHeaderLen]byte) vnetHeader {
	return vnetHeader{
		flags:      b[0],
		gsoType:    b[1],
		hdrLen:     binary.NativeEndian.Uint16(b[2:]),
		gsoSize:    binary.NativeEndian.Uint16(b[4:]),
		csumStart:  binary.NativeEndian.Uint16(b[6:]),
		csumOffset: binary.NativeEndian.Uint16(b[8:]),
	}
}

func (h vnetHeader) put(b *[vnetHeaderLen]byte) {
	b[0] = h.flags
	b[1] = h.gsoType
	binary.NativeEndian.PutUint16(b[2:], h.hdrLen)
	binary.NativeEndian.PutUint16(b[4:], h.gsoSize)
	binary.NativeEndian.PutUint16(b[6:], h.csumStart)
	binary.NativeEndian.PutUint16(b[8:], h.csumOffset)
}

// superSegment reports whether the packet is to be cut into segments.
func (h vnetHeader) superSegment() bool { return h.gsoType&^vnetGSOECN != vnetGSONone }

// outboundHeader says what netstack has left undone in a packet with the given GSO
// options, network and transport header of netLen and transportLen bytes, and
// payload bytes behind them. GSO.L3HdrLen is not used: netstack fills it in without
// regard to IP options.
func outboundHeader(gso stack.GSO, netLen, transportLen, payload int) vnetHeader {
	if gso.Type == stack.GSONone || !gso.NeedsCsum {
		return vnetHeader{}
	}
	h := vnetHeader{
		flags:      vnetNeedsChecksum,
		hdrLen:     uint16(netLen + transportLen),
		csumStart:  uint16(netLen),
		csumOffset: gso.CsumOffset,
	}
	if gso.MSS == 0 || payload <= int(gso.MSS) {
		return h
	}
	switch gso.Type {
	case stack.GSOTCPv4:
		h.gsoType, h.gsoSize = vnetGSOTCP4, gso.MSS
	case stack.GSOTCPv6:
		h.gsoType, h.gsoSize = vnetGSOTCP6, gso.MSS
	default: // netstack cuts those itself
	}
	return h
}

// A refusal is why a packet from the device goes no further.
type refusal uint8

const (
	accepted refusal = iota
	refusedMalformed
	refusedChecksum
	refusedUnsupported
)

// inbound judges a packet of total bytes read from the device, whose beginning is
// first. verified means that its transport checksum need not be looked at: it never
// left this machine, or the kernel has verified it. hdr_len is ignored: of a
// forwarded packet it may be the length of anything.
func (h vnetHeader) inbound(first []byte, total int) (l layout, verified bool, r refusal) {
	l, err := parseLayout(first, total)
	if err != nil {
		return l, false, refusedMalformed
	}
	if !l.v6 && header.IPv4(first).CalculateChecksum() != 0xffff {
		return l, false, refusedChecksum // netstack looks at it only if the rest is unverified too
	}
	verified = h.flags&(vnetNeedsChecksum|vnetDataValid) != 0
	if h.flags&vnetNeedsChecksum != 0 {
		if r := h.checkPartial(l); r != accepted {
			return l, false, r
		}
	}
	switch h.gsoType &^ vnetGSOECN {
	case vnetGSONone:
		return l, verified, accepted
	case vnetGSOTCP4, vnetGSOTCP6:
	default:
		return l, false, refusedUnsupported
	}
	if h.gsoSize == 0 || l.fragment || (h.gsoType&^vnetGSOECN == vnetGSOTCP6) != l.v6 ||
		(l.proto != protoTCP && l.proto != protoUnknown) {
		return l, false, refusedMalformed
	}
	return l, verified, accepted
}

// checkPartial checks that the checksum left undone is the one of the transport
// protocol that netstack would otherwise verify, so that it can take it as good.
func (h vnetHeader) checkPartial(l layout) refusal {
	end := int(h.csumStart) + int(h.csumOffset) + 2
	if end > l.length || l.fragment {
		return refusedMalformed
	}
	switch l.proto {
	case protoTCP, protoUDP:
		at, _ := checksumOffset(l.proto)
		if int(h.csumStart) != l.l4 || int(h.csumOffset) != at {
			return refusedMalformed
		}
	case protoUnknown:
		if int(h.csumStart) < l.l4 {
			return refusedMalformed
		}
	default: // a tunnel's inner packet, say: nobody here would complete it
		return refusedUnsupported
	}
	return accepted
}
