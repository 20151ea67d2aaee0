// Package tcptest joins two netstacks in memory, with an element in the path between
// them that sees every packet and may drop, change, repeat or reorder it. It is for
// tests of stack/tcp and of what is built on it.
package tcptest

import (
	"context"
	"net/netip"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
)

// NIC is the only NIC of each stack.
const NIC tcpip.NICID = 1

// Addresses of the two stacks.
var (
	A4 = netip.MustParseAddr("192.0.2.1")
	B4 = netip.MustParseAddr("192.0.2.2")
	A6 = netip.MustParseAddr("2001:db8::1")
	B6 = netip.MustParseAddr("2001:db8::2")
)

// queueLen is how many packets a link holds before it drops.
const queueLen = 8192

// Options says how to make a Pair.
type Options struct {
	A, B    stack.TransportProtocolFactory // TCP of each stack; nil is upstream's, from stack/tcp
	MTU     uint32                         // of both links, with the IP header; 0 means 1500
	Offload bool                           // super-segments and no checksums, as on a TUN device with GSO
	Clock   tcpip.Clock                    // nil is the real one
}

// A Pair is two stacks, A and B, joined by a link.
type Pair struct {
	tb     testing.TB
	A, B   *stack.Stack
	path   path
	cancel context.CancelFunc
	wg     sync.WaitGroup
	once   sync.Once
	ends   [2]*link
}

// New makes a Pair that is closed when the test ends.
func New(tb testing.TB, o Options) *Pair {
	tb.Helper()
	if o.MTU == 0 {
		o.MTU = 1500
	}
	p := &Pair{tb: tb}
	p.ends[0], p.ends[1] = newLink(o), newLink(o)
	p.A = p.newStack(o.A, o, p.ends[0], A4, A6)
	p.B = p.newStack(o.B, o, p.ends[1], B4, B6)
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.wg.Go(func() { p.pump(ctx, AtoB) })
	p.wg.Go(func() { p.pump(ctx, BtoA) })
	tb.Cleanup(p.Close)
	return p
}

// Close takes both stacks down and waits for their goroutines.
func (p *Pair) Close() {
	p.once.Do(func() {
		for _, s := range []*stack.Stack{p.A, p.B} {
			s.Close()
		}
		p.cancel()
		p.wg.Wait()
		for _, s := range []*stack.Stack{p.A, p.B} {
			s.Wait()
		}
		for _, l := range p.ends {
			l.Close()
		}
	})
}

func (p *Pair) newStack(proto stack.TransportProtocolFactory, o Options, l *link, a4, a6 netip.Addr) *stack.Stack {
	p.tb.Helper()
	if proto == nil {
		proto = tcp.NewProtocol
	}
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{proto},
		Clock:              o.Clock,
	})
	if err := s.CreateNIC(NIC, l); err != nil {
		p.tb.Fatalf("CreateNIC: %s", err)
	}
	for _, a := range []netip.Addr{a4, a6} {
		pa := tcpip.ProtocolAddress{Protocol: protocolOf(a), AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := s.AddProtocolAddress(NIC, pa, stack.AddressProperties{}); err != nil {
			p.tb.Fatalf("AddProtocolAddress(%s): %s", a, err)
		}
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: NIC},
		{Destination: header.IPv6EmptySubnet, NIC: NIC},
	})
	return s
}

// pump carries the packets of one direction until ctx ends.
func (p *Pair) pump(ctx context.Context, d Direction) {
	from, to := p.ends[d], p.ends[1-d]
	for {
		pkt := from.ReadContext(ctx)
		if pkt == nil {
			return
		}
		if !p.path.active() {
			in := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: pkt.ToBuffer()})
			in.RXChecksumValidated = from.offload
			proto := pkt.NetworkProtocolNumber
			pkt.DecRef()
			to.InjectInbound(proto, in)
			in.DecRef()
			continue
		}
		view := pkt.ToView()
		raw := append([]byte(nil), view.AsSlice()...)
		view.Release()
		proto := pkt.NetworkProtocolNumber
		pkt.DecRef()
		for _, out := range p.path.process(d, proto, raw) {
			if out.Dir == d {
				inject(to, out)
			} else {
				inject(from, out)
			}
		}
	}
}

func inject(l *link, pk *Packet) {
	in := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(pk.IP)})
	in.RXChecksumValidated = l.offload
	l.InjectInbound(pk.Proto, in)
	in.DecRef()
}

// Inject delivers a packet now to where it is heading.
func (p *Pair) Inject(pk *Packet) { inject(p.ends[1-pk.Dir], pk) }

// link is a channel endpoint with the sizes of ours.
type link struct {
	*channel.Endpoint
	offload bool
}

func newLink(o Options) *link {
	l := &link{Endpoint: channel.New(queueLen, o.MTU, ""), offload: o.Offload}
	if o.Offload {
		l.SupportedGSOKind = stack.HostGSOSupported
		l.LinkEPCapabilities = stack.CapabilityTXChecksumOffload | stack.CapabilityRXChecksumOffload
	}
	return l
}

// GSOMaxSize implements stack.GSOEndpoint.
func (*link) GSOMaxSize() uint32 { return 65535 }

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}
