package tun

import (
	"context"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const testNIC = 1

// newNetstack returns upstream's stack on link, with addrs as its own and everything
// else reachable through the link. It is destroyed with the test.
func newNetstack(tb testing.TB, link stack.LinkEndpoint, addrs ...netip.Addr) *stack.Stack {
	tb.Helper()
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	tb.Cleanup(s.Destroy)
	sack := tcpip.TCPSACKEnabled(true)
	if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, &sack); err != nil {
		tb.Fatalf("SACK: %v", err)
	}
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 4 << 20, Max: 8 << 20}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: 4 << 20, Max: 8 << 20}
	if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, &rcv); err != nil {
		tb.Fatalf("receive buffer: %v", err)
	}
	if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, &snd); err != nil {
		tb.Fatalf("send buffer: %v", err)
	}
	if err := s.CreateNIC(testNIC, link); err != nil {
		tb.Fatalf("CreateNIC: %v", err)
	}
	for _, a := range addrs {
		err := s.AddProtocolAddress(testNIC, tcpip.ProtocolAddress{
			Protocol:          protocolOf(a),
			AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix(),
		}, stack.AddressProperties{})
		if err != nil {
			tb.Fatalf("AddProtocolAddress(%v): %v", a, err)
		}
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: testNIC},
		{Destination: header.IPv6EmptySubnet, NIC: testNIC},
	})
	return s
}

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: testNIC, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

func netstackListen(tb testing.TB, s *stack.Stack, a netip.AddrPort) net.Listener {
	tb.Helper()
	l, err := gonet.ListenTCP(s, fullAddress(a), protocolOf(a.Addr()))
	if err != nil {
		tb.Fatalf("netstack: listen on %v: %v", a, err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	return l
}

func netstackDial(tb testing.TB, s *stack.Stack, a netip.AddrPort) net.Conn {
	tb.Helper()
	c, err := gonet.DialContextTCP(context.Background(), s, fullAddress(a), protocolOf(a.Addr()))
	if err != nil {
		tb.Fatalf("netstack: dial %v: %v", a, err)
	}
	return c
}

// connect returns the two ends of a new connection; dial is called while l waits.
func connect(tb testing.TB, l net.Listener, dial func() net.Conn) (dialled, accepted net.Conn) {
	tb.Helper()
	type result struct {
		c   net.Conn
		err error
	}
	ch := make(chan result, 1)
	go func() {
		c, err := l.Accept()
		ch <- result{c, err}
	}()
	dialled = dial()
	r := <-ch
	if r.err != nil {
		tb.Fatalf("accept: %v", r.err)
	}
	tb.Cleanup(func() {
		_ = dialled.Close()
		_ = r.c.Close()
	})
	return dialled, r.c
}

// exchange sends size pseudo-random bytes from one end to the other and compares
// what arrives by its hash.
func exchange(tb testing.TB, from, to net.Conn, size int64) {
	tb.Helper()
	type sent struct {
		sum [sha256.Size]byte
		err error
	}
	ch := make(chan sent, 1)
	go func() {
		h := sha256.New()
		src := io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
		_, err := io.CopyBuffer(onlyWriter{io.MultiWriter(from, h)}, src, make([]byte, 256<<10))
		ch <- sent{[32]byte(h.Sum(nil)), err}
	}()
	h := sha256.New()
	if n, err := io.CopyBuffer(onlyWriter{h}, io.LimitReader(to, size), make([]byte, 256<<10)); err != nil || n != size {
		tb.Fatalf("received %d of %d bytes: %v", n, size, err)
	}
	s := <-ch
	if s.err != nil {
		tb.Fatalf("send: %v", s.err)
	}
	if got := [32]byte(h.Sum(nil)); got != s.sum {
		tb.Fatalf("sha256 of what arrived is %x, of what was sent %x", got, s.sum)
	}
}

// onlyWriter hides ReadFrom, so that io.CopyBuffer uses the buffer it was given.
type onlyWriter struct{ io.Writer }
