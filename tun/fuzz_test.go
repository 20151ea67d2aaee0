package tun

import (
	"encoding/binary"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// FuzzInbound reads a virtio-net header and packet as they come from the device. What
// is accepted must be safe to use: offsets inside the packet, and a super-segment
// that can be cut.
func FuzzInbound(f *testing.F) {
	for _, p := range [][]byte{tcpPacket4(nil, 3000), tcpPacket6(nil, 3000), ping4(f)} {
		var hdr [vnetHeaderLen]byte
		f.Add(append(hdr[:], p...))
		h := vnetHeader{flags: vnetNeedsChecksum, gsoType: vnetGSOTCP4, gsoSize: 1000, csumStart: 20, csumOffset: 16}
		if p[0]>>4 == 6 {
			h.gsoType, h.csumStart = vnetGSOTCP6, 40
		}
		h.put(&hdr)
		f.Add(append(hdr[:], p...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < vnetHeaderLen {
			return
		}
		h := parseVnetHeader((*[vnetHeaderLen]byte)(b))
		var back [vnetHeaderLen]byte
		if h.put(&back); back != [vnetHeaderLen]byte(b) {
			t.Fatalf("%x became %+v and then %x", b[:vnetHeaderLen], h, back)
		}
		packet := b[vnetHeaderLen:]
		if len(packet) > maxPacket {
			return
		}
		l, verified, r := h.inbound(packet[:min(len(packet), BypassPrefix)], len(packet))
		if r != accepted {
			if verified {
				t.Errorf("refused and verified: %+v", h)
			}
			return
		}
		if l.l4 > l.length || l.length > len(packet) {
			t.Fatalf("offsets %+v in a packet of %d bytes", l, len(packet))
		}
		if whole, err := parseLayout(packet, len(packet)); err == nil && l.proto != protoUnknown && whole != l {
			t.Errorf("layout by the beginning is %+v, by the whole packet %+v", l, whole)
		}
		var s segmenter
		if segments, err := s.segments(packet, int(h.gsoSize)); err == nil {
			checkSegments(t, packet[:l.length], int(h.gsoSize), segments)
		}
		_ = fixChecksums(packet)
	})
}

// checkSegments checks that segments are packet, cut.
func checkSegments(t *testing.T, packet []byte, mss int, segments func(func(hdr, payload []byte) bool)) {
	t.Helper()
	l, err := parseLayout(packet, len(packet))
	if err != nil {
		t.Fatalf("a packet that was cut: %v", err)
	}
	whole := header.TCP(packet[l.l4:])
	rest := packet[l.l4+int(whole.DataOffset()):]
	offset, i := 0, 0
	for hdr, payload := range segments {
		seg := append(append([]byte(nil), hdr...), payload...)
		sl, err := parseLayout(seg, len(seg))
		if err != nil || sl.length != len(seg) || sl.l4 != l.l4 {
			t.Fatalf("segment %d: layout %+v, %v", i, sl, err)
		}
		if len(payload) > mss || len(payload) > len(rest) || string(payload) != string(rest[:len(payload)]) {
			t.Fatalf("segment %d: payload of %d bytes is not the next of the packet's", i, len(payload))
		}
		rest = rest[len(payload):]
		tcp := header.TCP(seg[sl.l4:])
		if want := whole.SequenceNumber() + uint32(offset); tcp.SequenceNumber() != want {
			t.Errorf("segment %d: sequence number %d, want %d", i, tcp.SequenceNumber(), want)
		}
		const cwr = 0x80
		want := whole.Flags()
		if len(rest) > 0 {
			want &^= header.TCPFlagFin | header.TCPFlagPsh
		}
		if i > 0 {
			want &^= cwr
		}
		if tcp.Flags() != want {
			t.Errorf("segment %d: flags %v, want %v", i, tcp.Flags(), want)
		}
		if !l.v6 {
			if got, want := binary.BigEndian.Uint16(seg[4:]), binary.BigEndian.Uint16(packet[4:])+uint16(i); got != want {
				t.Errorf("segment %d: IPv4 identification %d, want %d", i, got, want)
			}
		}
		if !l.v6 || l.l4 == header.IPv6MinimumSize {
			checkChecksums(t, seg)
		}
		offset += len(payload)
		i++
	}
	if len(rest) > 0 {
		t.Errorf("%d bytes of payload are in no segment", len(rest))
	}
}
