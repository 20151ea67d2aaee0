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
