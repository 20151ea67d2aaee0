package tun

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

func netstackDialContext(ctx context.Context, s *stack.Stack, a netip.AddrPort) (net.Conn, error) {
	return gonet.DialContextTCP(ctx, s, fullAddress(a), protocolOf(a.Addr()))
}

// referenceSum is the Internet checksum by RFC 1071's definition, two bytes at a
// time, so that tests do not check a checksum with the code that made it.
func referenceSum(parts ...[]byte) uint16 {
	var sum uint32
	for _, p := range parts {
		if len(p)%2 == 1 {
			p = append(append([]byte(nil), p...), 0)
		}
		for i := 0; i < len(p); i += 2 {
			sum += uint32(p[i])<<8 | uint32(p[i+1])
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// checkChecksums verifies the IPv4 header checksum and the transport checksum of a
// packet whose transport header follows the fixed IPv6 header, or IPv4's.
func checkChecksums(tb testing.TB, packet []byte) {
	tb.Helper()
	pseudo := make([]byte, 0, 40)
	l4, proto := 40, packet[6]
	if packet[0]>>4 == 4 {
		l4, proto = int(packet[0]&15)*4, packet[9]
		if s := referenceSum(packet[:l4]); s != 0xffff {
			tb.Errorf("IPv4 header sums to %#x, want 0xffff: %x", s, packet[:l4])
		}
		pseudo = append(pseudo, packet[12:20]...)
	} else {
		pseudo = append(pseudo, packet[8:40]...)
	}
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(packet)-l4))
	pseudo = append(pseudo, 0, 0, 0, proto)
	if proto == protoICMP {
		pseudo = nil
	}
	if s := referenceSum(pseudo, packet[l4:]); s != 0xffff {
		tb.Errorf("transport sums to %#x, want 0xffff: %x", s, packet[:min(len(packet), 80)])
	}
}

// ping4 is an ICMP echo request from A to B.
func ping4(tb testing.TB) []byte {
	tb.Helper()
	p := []byte{
		0x45, 0, 0, 32, 0, 1, 0, 0, 64, protoICMP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2,
		8, 0, 0, 0, 0, 1, 0, 1, 't', 'e', 's', 't',
	}
	if err := fixChecksums(p); err != nil {
		tb.Fatal(err)
	}
	checkChecksums(tb, p)
	return p
}

// A tcpOption changes a packet that tcpPacket4 or tcpPacket6 makes.
type tcpFields struct {
	ipOptions  []byte // IPv4 options, or IPv6 extension headers (the last one's next header being TCP)
	firstNext  uint8  // IPv6: the number of the first extension header
	tcpOptions []byte
	flags      uint8
}

func (f *tcpFields) orDefault() tcpFields {
	if f == nil {
		return tcpFields{flags: 0x10}
	}
	return *f
}

func (f tcpFields) segment(payload int) []byte {
	tcp := []byte{0x1f, 0x90, 0, 80, 0xff, 0xff, 0xfc, 0, 0, 0, 0, 1, byte(5+len(f.tcpOptions)/4) << 4, f.flags, 0x20, 0, 0, 0, 0, 0}
	tcp = append(tcp, f.tcpOptions...)
	for i := range payload {
		tcp = append(tcp, byte(i*7+i>>8))
	}
	return tcp
}

// tcpPacket4 returns a TCP packet from A to B with payload bytes of data and right
// checksums. Its sequence number wraps after 1024 bytes.
func tcpPacket4(fields *tcpFields, payload int) []byte {
	f := fields.orDefault()
	p := []byte{byte(0x45 + len(f.ipOptions)/4), 0, 0, 0, 0xff, 0xfe, 0x40, 0, 64, protoTCP, 0, 0}
	p = append(p, addrA4.AsSlice()...)
	p = append(p, addrB4.AsSlice()...)
	p = append(p, f.ipOptions...)
	p = append(p, f.segment(payload)...)
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	if err := fixChecksums(p); err != nil {
		panic(err)
	}
	return p
}

// tcpPacket6 is tcpPacket4 for IPv6.
func tcpPacket6(fields *tcpFields, payload int) []byte {
	f := fields.orDefault()
	if len(f.ipOptions) == 0 {
		f.firstNext = protoTCP
	}
	p := []byte{0x60, 0, 0, 0, 0, 0, f.firstNext, 64}
	p = append(p, addrA6.AsSlice()...)
	p = append(p, addrB6.AsSlice()...)
	p = append(p, f.ipOptions...)
	p = append(p, f.segment(payload)...)
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
	if err := fixChecksums(p); err != nil {
		panic(err)
	}
	return p
}

func TestParseLayout(t *testing.T) {
	hopByHop := []byte{protoTCP, 0, 1, 4, 0, 0, 0, 0}
	frag := func(offsetAndMore uint16) []byte {
		return binary.BigEndian.AppendUint16([]byte{protoTCP, 0}, offsetAndMore)
	}
	fragment := func(offsetAndMore uint16) *tcpFields {
		return &tcpFields{firstNext: protoFragment, ipOptions: append(frag(offsetAndMore), 0, 0, 0, 1)}
	}
	long := append([]byte{protoTCP, 255}, make([]byte, 256*8-2)...)
	edit := func(p []byte, at int, b ...byte) []byte {
		copy(p[at:], b)
		return p
	}
	for _, tt := range []struct {
		name   string
		packet []byte
		want   layout
		bad    bool
	}{
		{"IPv4", tcpPacket4(nil, 8), layout{proto: protoTCP, l4: 20, length: 48}, false},
		{"IPv4 options", tcpPacket4(&tcpFields{ipOptions: []byte{1, 1, 1, 0}}, 8), layout{proto: protoTCP, l4: 24, length: 52}, false},
		{"IPv4 first fragment", edit(tcpPacket4(nil, 8), 6, 0x20, 0), layout{proto: protoTCP, l4: 20, length: 48, fragment: true}, false},
		{"IPv4 later fragment", edit(tcpPacket4(nil, 8), 6, 0, 1), layout{proto: protoTCP, l4: 20, length: 48, fragment: true}, false},
		{"IPv4 trailing bytes", append(tcpPacket4(nil, 8), 0, 0), layout{proto: protoTCP, l4: 20, length: 48}, false},
		{"IPv6", tcpPacket6(nil, 8), layout{v6: true, proto: protoTCP, l4: 40, length: 68}, false},
		{"IPv6 hop-by-hop", tcpPacket6(&tcpFields{firstNext: protoHopByHop, ipOptions: hopByHop}, 8), layout{v6: true, proto: protoTCP, l4: 48, length: 76}, false},
		{"IPv6 authentication", tcpPacket6(&tcpFields{firstNext: protoAH, ipOptions: []byte{protoTCP, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1}}, 8), layout{v6: true, proto: protoTCP, l4: 52, length: 80}, false},
		{"IPv6 fragment", tcpPacket6(fragment(1), 8), layout{v6: true, proto: protoTCP, l4: 48, length: 76, fragment: true}, false},
		{"IPv6 atomic fragment", tcpPacket6(fragment(0), 8), layout{v6: true, proto: protoTCP, l4: 48, length: 76}, false},
		{"IPv6 long extension", tcpPacket6(&tcpFields{firstNext: protoDestOpts, ipOptions: long}, 8), layout{v6: true, proto: protoTCP, l4: 40 + 2048, length: 40 + 2048 + 28}, false},
		{"empty", nil, layout{}, true},
		{"version 5", edit(tcpPacket4(nil, 8), 0, 0x55), layout{}, true},
		{"IPv4 cut off", tcpPacket4(nil, 8)[:19], layout{}, true},
		{"IPv4 header of 16 bytes", edit(tcpPacket4(nil, 8), 0, 0x44), layout{}, true},
		{"IPv4 header longer than packet", edit(tcpPacket4(nil, 0), 0, 0x4f), layout{}, true},
		{"IPv4 length shorter than header", edit(tcpPacket4(nil, 8), 2, 0, 19), layout{}, true},
		{"IPv4 length longer than packet", edit(tcpPacket4(nil, 8), 2, 0, 49), layout{}, true},
		{"IPv6 cut off", tcpPacket6(nil, 8)[:39], layout{}, true},
		{"IPv6 length longer than packet", edit(tcpPacket6(nil, 8), 4, 0, 29), layout{}, true},
		{"IPv6 extension beyond packet", edit(tcpPacket6(nil, 8), 6, protoHopByHop, 64, 0x20, 1), layout{}, true},
	} {
		got, err := parseLayout(tt.packet, len(tt.packet))
		if got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%s: parseLayout = %+v, %v, want %+v, error: %v", tt.name, got, err, tt.want, tt.bad)
		}
	}
	p := tcpPacket6(&tcpFields{firstNext: protoDestOpts, ipOptions: long}, 8)
	want := layout{v6: true, proto: protoTCP, l4: 40 + 2048, length: len(p)}
	if got, err := parseLayout(p[:BypassPrefix], len(p)); got != want || err != nil {
		t.Errorf("beginning of one long extension: %+v, %v, want %+v", got, err, want)
	}
	two := tcpPacket6(&tcpFields{firstNext: protoDestOpts, ipOptions: append(append([]byte{protoDestOpts}, long[1:]...), hopByHop...)}, 8)
	want = layout{v6: true, proto: protoUnknown, l4: 40 + 2048, length: len(two)}
	if got, err := parseLayout(two[:BypassPrefix], len(two)); got != want || err != nil {
		t.Errorf("beginning of two extensions: %+v, %v, want %+v", got, err, want)
	}
	for i := range tcpPacket6(nil, 0) { // whatever is cut off, no panic and no offset beyond
		if l, err := parseLayout(tcpPacket6(nil, 0)[:i], i); err == nil {
			t.Errorf("the first %d bytes: %+v, want an error", i, l)
		}
	}
}

func TestFixChecksums(t *testing.T) {
	udp4 := []byte{0x45, 0, 0, 30, 0, 0, 0, 0, 64, protoUDP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, 0, 53, 0, 53, 0, 10, 0, 0, 1, 2}
	icmp6 := append([]byte{0x60, 0, 0, 0, 0, 9, protoICMPv6, 64}, append(addrA6.AsSlice(), addrB6.AsSlice()...)...)
	icmp6 = append(icmp6, 128, 0, 0xde, 0xad, 0, 1, 0, 1, 'x')
	for _, p := range [][]byte{
		tcpPacket4(nil, 1001), tcpPacket4(&tcpFields{ipOptions: []byte{1, 1, 1, 0}}, 7), tcpPacket6(nil, 1001), udp4, icmp6, ping4(t),
	} {
		if err := fixChecksums(p); err != nil {
			t.Errorf("fixChecksums(%x): %v", p[:20], err)
		}
		checkChecksums(t, p)
	}
	fragment := tcpPacket4(nil, 8)
	fragment[6] = 0x20
	before := binary.BigEndian.Uint16(fragment[36:])
	if err := fixChecksums(fragment); err != nil || binary.BigEndian.Uint16(fragment[36:]) != before {
		t.Errorf("fixChecksums of a fragment: %v, TCP checksum %#x, want %#x", err, fragment[36:38], before)
	}
	if err := fixChecksums(tcpPacket4(nil, 0)[:30]); err == nil {
		t.Error("fixChecksums of half a packet: no error")
	}
}
