package tun

import (
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

func TestOutboundHeader(t *testing.T) {
	gso4 := stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, CsumOffset: 16, MSS: 1448, L3HdrLen: 20, MaxSize: maxPacket}
	gso6 := gso4
	gso6.Type = stack.GSOTCPv6
	gvisor := gso4
	gvisor.Type = stack.GSOGvisor
	gvisor.NeedsCsum = false
	for _, tt := range []struct {
		name                    string
		gso                     stack.GSO
		net, transport, payload int
		want                    vnetHeader
	}{
		{"nothing left undone", stack.GSO{}, 20, 20, 100, vnetHeader{}},
		{"cut by netstack", gvisor, 20, 32, 1448, vnetHeader{}},
		{"acknowledgement", gso4, 20, 32, 0, vnetHeader{flags: 1, hdrLen: 52, csumStart: 20, csumOffset: 16}},
		{"one full segment", gso4, 20, 32, 1448, vnetHeader{flags: 1, hdrLen: 52, csumStart: 20, csumOffset: 16}},
		{"a byte more", gso4, 20, 32, 1449, vnetHeader{flags: 1, gsoType: 1, hdrLen: 52, gsoSize: 1448, csumStart: 20, csumOffset: 16}},
		{"IP options", gso4, 24, 20, 60000, vnetHeader{flags: 1, gsoType: 1, hdrLen: 44, gsoSize: 1448, csumStart: 24, csumOffset: 16}},
		{"IPv6", gso6, 40, 32, 60000, vnetHeader{flags: 1, gsoType: 4, hdrLen: 72, gsoSize: 1448, csumStart: 40, csumOffset: 16}},
		{"IPv6 extension", gso6, 48, 20, 60000, vnetHeader{flags: 1, gsoType: 4, hdrLen: 68, gsoSize: 1448, csumStart: 48, csumOffset: 16}},
	} {
		if got := outboundHeader(tt.gso, tt.net, tt.transport, tt.payload); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestInbound(t *testing.T) {
	partial := vnetHeader{flags: vnetNeedsChecksum, csumStart: 20, csumOffset: 16}
	with := func(h vnetHeader, edit func(*vnetHeader)) vnetHeader { edit(&h); return h }
	super := with(partial, func(h *vnetHeader) { h.gsoType, h.gsoSize = vnetGSOTCP4, 1448 })
	super6 := with(super, func(h *vnetHeader) { h.gsoType, h.csumStart = vnetGSOTCP6, 40 })
	p4, p6 := tcpPacket4(nil, 3000), tcpPacket6(nil, 3000)
	badIP := tcpPacket4(nil, 0)
	badIP[10]++
	fragment := tcpPacket4(nil, 3000)
	fragment[6] = 0x20
	if err := fixChecksums(fragment); err != nil {
		t.Fatal(err)
	}
	udp := []byte{0x45, 0, 0, 30, 0, 0, 0, 0, 64, protoUDP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, 0, 53, 0, 53, 0, 10, 0, 0, 1, 2}
	if err := fixChecksums(udp); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name     string
		h        vnetHeader
		packet   []byte
		verified bool
		want     refusal
	}{
		{"plain", vnetHeader{}, p4, false, accepted},
		{"verified by the kernel", vnetHeader{flags: vnetDataValid}, p4, true, accepted},
		{"from this machine", partial, p4, true, accepted},
		{"hdr_len is of no account", with(partial, func(h *vnetHeader) { h.hdrLen = 65535 }), p4, true, accepted},
		{"unknown flags are ignored", vnetHeader{flags: 0xfc}, p4, false, accepted},
		{"super-segment", super, p4, true, accepted},
		{"super-segment with CWR", with(super, func(h *vnetHeader) { h.gsoType |= vnetGSOECN }), p4, true, accepted},
		{"super-segment, IPv6", super6, p6, true, accepted},
		{"UDP from this machine", with(partial, func(h *vnetHeader) { h.csumOffset = 6 }), udp, true, accepted},
		{"ICMP", vnetHeader{}, ping4(t), false, accepted},
		{"no packet", vnetHeader{}, nil, false, refusedMalformed},
		{"not IP", vnetHeader{}, []byte{0, 1, 2, 3}, false, refusedMalformed},
		{"IPv4 header checksum", vnetHeader{flags: vnetDataValid}, badIP, false, refusedChecksum},
		{"checksum elsewhere", with(partial, func(h *vnetHeader) { h.csumStart = 24 }), p4, false, refusedMalformed},
		{"checksum in another field", with(partial, func(h *vnetHeader) { h.csumOffset = 6 }), p4, false, refusedMalformed},
		{"checksum beyond packet", with(partial, func(h *vnetHeader) { h.csumStart = 65535 }), p4, false, refusedMalformed},
		{"partial checksum of a fragment", partial, fragment, false, refusedMalformed},
		{"partial checksum of ICMP", with(partial, func(h *vnetHeader) { h.csumOffset = 2 }), ping4(t), false, refusedUnsupported},
		{"super-datagram of UDP", with(super, func(h *vnetHeader) { h.gsoType, h.csumOffset = 5, 6 }), udp, false, refusedUnsupported},
		{"super-segment of UDP", with(super, func(h *vnetHeader) { h.csumOffset = 6 }), udp, false, refusedMalformed},
		{"segments of no bytes", with(super, func(h *vnetHeader) { h.gsoSize = 0 }), p4, false, refusedMalformed},
		{"IPv6 segments of IPv4", with(super, func(h *vnetHeader) { h.gsoType = vnetGSOTCP6 }), p4, false, refusedMalformed},
		{"IPv4 segments of IPv6", with(super6, func(h *vnetHeader) { h.gsoType = vnetGSOTCP4 }), p6, false, refusedMalformed},
		{"super-segment of a fragment", vnetHeader{gsoType: vnetGSOTCP4, gsoSize: 1000}, fragment, false, refusedMalformed},
	} {
		first := tt.packet[:min(len(tt.packet), BypassPrefix)]
		if _, verified, r := tt.h.inbound(first, len(tt.packet)); verified != tt.verified || r != tt.want {
			t.Errorf("%s: verified %v, refusal %d, want %v, %d", tt.name, verified, r, tt.verified, tt.want)
		}
	}
}
