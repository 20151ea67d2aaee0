package tcp_test

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

// tooBig is a router's answer to a packet that does not fit its next link.
func tooBig(pk *tcptest.Packet, mtu uint32) *tcptest.Packet {
	out := &tcptest.Packet{Dir: 1 - pk.Dir, Proto: pk.Proto}
	if pk.Proto == header.IPv6ProtocolNumber {
		quoted := pk.IP[:min(len(pk.IP), 1000)]
		ip := header.IPv6(pk.IP)
		out.IP = make([]byte, header.IPv6MinimumSize+header.ICMPv6PacketTooBigMinimumSize+len(quoted))
		icmp := header.ICMPv6(out.IP[header.IPv6MinimumSize:])
		icmp.SetType(header.ICMPv6PacketTooBig)
		icmp.SetMTU(mtu)
		copy(icmp[header.ICMPv6PacketTooBigMinimumSize:], quoted)
		header.IPv6(out.IP).Encode(&header.IPv6Fields{
			PayloadLength: uint16(len(icmp)), TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: 64,
			SrcAddr: ip.DestinationAddress(), DstAddr: ip.SourceAddress(),
		})
		icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
			Header: icmp, Src: ip.DestinationAddress(), Dst: ip.SourceAddress(),
		}))
		return out
	}
	quoted := pk.IP[:min(len(pk.IP), 500)]
	ip := header.IPv4(pk.IP)
	out.IP = make([]byte, header.IPv4MinimumSize+header.ICMPv4MinimumSize+len(quoted))
	icmp := header.ICMPv4(out.IP[header.IPv4MinimumSize:])
	icmp.SetType(header.ICMPv4DstUnreachable)
	icmp.SetCode(header.ICMPv4FragmentationNeeded)
	icmp.SetMTU(uint16(mtu))
	copy(icmp[header.ICMPv4MinimumSize:], quoted)
	icmp.SetChecksum(^checksum.Checksum(icmp, 0))
	header.IPv4(out.IP).Encode(&header.IPv4Fields{
		TotalLength: uint16(len(out.IP)), Protocol: uint8(header.ICMPv4ProtocolNumber), TTL: 64,
		SrcAddr: ip.DestinationAddress(), DstAddr: ip.SourceAddress(),
	})
	header.IPv4(out.IP).SetChecksum(^header.IPv4(out.IP).CalculateChecksum())
	return out
}

// TestPathMTUUpdate: one packet too big makes everything in flight be sent again at
// once, in packets that fit; no timer has to expire for it.
func TestPathMTUUpdate(t *testing.T) {
	const small = 1300
	for _, family := range []netip.Addr{tcptest.B4, tcptest.B6} {
		for _, offload := range []bool{false, true} {
			for _, plain := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/offload=%v/plain=%v", family, offload, plain), func(t *testing.T) {
					o := opts(&toy{Off: plain}, new(toy))
					o.Offload = offload
					p := tcptest.New(t, o)
					// No timeout by the machine's load is to be taken for one by a hole.
					slow := tcpip.TCPMinRTOOption(5 * time.Second)
					if err := p.A.SetTransportProtocolOption(tcp.ProtocolNumber, &slow); err != nil {
						t.Fatal(err)
					}
					l := p.Listen(p.B, netip.AddrPortFrom(family, port), 10)
					defer l.Close()
					c := p.NewConn(p.A, family)
					if plain {
						c.Secure().SetNegotiator(nil)
					}
					if err := c.StartConnect(netip.AddrPortFrom(family, port)); err != nil {
						t.Fatal(err)
					}
					s, err := l.Accept()
					if err != nil {
						t.Fatal(err)
					}
					if err := c.WaitReady(); err != nil {
						t.Fatal(err)
					}
					// Open the window first, so that much is in flight.
					e := ends{p, c, s}
					e.exchange(t, 500_000)

					var mu sync.Mutex
					told := 0
					p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
						if offload && len(pk.Payload()) > 0 {
							// A super-segment stands for packets of its MSS, which the trace
							// does not show; ask the sender's state instead.
							if pk.Dir == tcptest.AtoB && tcp.PayloadSize(c.Secure())+40 > small {
								mu.Lock()
								defer mu.Unlock()
								told++
								return []*tcptest.Packet{tooBig(pk, small)}
							}
							return []*tcptest.Packet{pk}
						}
						if pk.Dir == tcptest.AtoB && len(pk.IP) > small {
							mu.Lock()
							defer mu.Unlock()
							if told++; told == 1 {
								return []*tcptest.Packet{tooBig(pk, small)}
							}
							return nil // further complaints are rate-limited by routers
						}
						return []*tcptest.Packet{pk}
					})
					before := p.A.Stats().TCP.Timeouts.Value()
					send(t, c, s, random(1<<20))
					if n := p.A.Stats().TCP.Timeouts.Value() - before; n != 0 {
						t.Errorf("%d retransmission timeouts, want none", n)
					}
					mu.Lock()
					if told == 0 {
						t.Error("nothing was too big")
					}
					mu.Unlock()
					p.SetHook(nil)
					send(t, s, c, random(1000))
					e.close()
				})
			}
		}
	}
}

// TestSetMTUOnALiveConnection does what a router's message does.
func TestSetMTUOnALiveConnection(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	e.exchange(t, 100_000)
	e.active.Secure().SetMTU(1000)
	p.Trace()
	e.exchange(t, 100_000)
	e.finish(t)
	for _, pk := range p.Packets() {
		if pk.Dir == tcptest.AtoB && len(pk.IP) > 1000 {
			t.Errorf("%d bytes: %s", len(pk.IP), pk)
		}
	}
}

// TestKeepAliveOptionsPassThrough to TCP.
func TestKeepAliveOptionsPassThrough(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	idle := tcpip.KeepaliveIdleOption(20e6)
	interval := tcpip.KeepaliveIntervalOption(10e6)
	if err := e.active.EP.SetSockOpt(&idle); err != nil {
		t.Fatal(err)
	}
	if err := e.active.EP.SetSockOpt(&interval); err != nil {
		t.Fatal(err)
	}
	if err := e.active.EP.SetSockOptInt(tcpip.KeepaliveCountOption, 3); err != nil {
		t.Fatal(err)
	}
	e.active.EP.SocketOptions().SetKeepAlive(true)
	// A peer that is gone: nothing comes back.
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
		if pk.Dir == tcptest.BtoA {
			return nil
		}
		return []*tcptest.Packet{pk}
	})
	_, err := e.active.Read(make([]byte, 1))
	if _, ok := tcpError(err).(*tcpip.ErrTimeout); !ok {
		t.Errorf("read: %v, want a timeout", err)
	}
	if err := e.active.Secure().Err(); err == nil {
		t.Error("no cause is kept")
	}
	p.SetHook(nil)
	e.close()
}
