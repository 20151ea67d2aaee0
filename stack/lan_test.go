package stack

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	stocktcp "gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// A lan joins hosts in memory and plays their kernels' routing: what a host's programs
// send to others goes to its TUN if it has a relay, what the relay sends goes to the
// programs or to the wire, and connections from the wire to inbound ports are DNAT-ed
// to the relay's S.
//
//	programs (stock netstack) -- kernel -- relay's TUN
//	                               |
//	                             wire
type lan struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	hosts []*lanHost

	mu   sync.Mutex
	wire func(packet []byte) bool // sees every packet on the wire, false drops it; nil passes
	// nowhere answers for packets to addresses of no host; nil drops them.
	nowhere func(from *lanHost, packet []byte)
}

// A lanHost is a host of the lan.
type lanHost struct {
	l            *lan
	addr4, addr6 netip.Addr // the host's own
	h4, s4       netip.Addr
	h6, s6       netip.Addr
	programs     *nstack.Stack
	programLink  *channel.Endpoint

	relay    *Stack // nil: a plain host
	tunLink  *channel.Endpoint
	inbound  map[uint16]bool // ports that are DNAT-ed
	captures atomic.Bool     // outbound goes to the TUN

	onProgram func(packet []byte) // sees what the relay sends to programs
}

const (
	programNIC = 1
	lanMTU     = 1500
	lanQueue   = 1 << 15
)

func newLAN(tb testing.TB) *lan {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &lan{ctx: ctx, cancel: cancel}
	tb.Cleanup(l.close)
	return l
}

// close stops the relays, then the programs, then the kernels.
func (l *lan) close() {
	for _, h := range l.hosts {
		if h.relay != nil {
			_ = h.relay.Close()
		}
	}
	for _, h := range l.hosts {
		h.programs.Destroy()
	}
	l.cancel()
	l.wg.Wait()
}

func (l *lan) onWire(f func(packet []byte) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wire = f
}

func newLink(mtu uint32, gso bool) *channel.Endpoint {
	ep := channel.New(lanQueue, mtu, "")
	ep.LinkEPCapabilities = nstack.CapabilityRXChecksumOffload
	if gso {
		ep.SupportedGSOKind = nstack.HostGSOSupported
	}
	return ep
}

// addHost adds a plain host, the n-th.
func (l *lan) addHost(tb testing.TB) *lanHost {
	tb.Helper()
	n := byte(len(l.hosts) + 1)
	h := &lanHost{
		l:       l,
		addr4:   netip.AddrFrom4([4]byte{203, 0, 113, n}),
		addr6:   netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: n}),
		h4:      netip.AddrFrom4([4]byte{198, 18, n, 1}),
		s4:      netip.AddrFrom4([4]byte{198, 18, n, 2}),
		h6:      netip.AddrFrom16([16]byte{0xfd, 0x74, 14: n, 15: 1}),
		s6:      netip.AddrFrom16([16]byte{0xfd, 0x74, 14: n, 15: 2}),
		inbound: make(map[uint16]bool),
	}
	h.programLink = newLink(65535, true)
	h.programs = nstack.New(nstack.Options{
		NetworkProtocols:   []nstack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []nstack.TransportProtocolFactory{stocktcp.NewProtocolCUBIC},
	})
	buf := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 8 << 20}
	if err := h.programs.SetTransportProtocolOption(stocktcp.ProtocolNumber, &buf); err != nil {
		tb.Fatal(err)
	}
	if err := h.programs.CreateNIC(programNIC, h.programLink); err != nil {
		tb.Fatal(err)
	}
	h.addAddress(tb, h.addr4, nstack.CanBePrimaryEndpoint)
	h.addAddress(tb, h.addr6, nstack.CanBePrimaryEndpoint)
	h.addAddress(tb, h.h4, nstack.NeverPrimaryEndpoint)
	h.addAddress(tb, h.h6, nstack.NeverPrimaryEndpoint)
	h.programs.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: programNIC},
		{Destination: header.IPv6EmptySubnet, NIC: programNIC},
	})
	l.hosts = append(l.hosts, h)
	l.serve(h.programLink, h.fromPrograms)
	return h
}

func (h *lanHost) addAddress(tb testing.TB, a netip.Addr, primary nstack.PrimaryEndpointBehavior) {
	tb.Helper()
	pa := tcpip.ProtocolAddress{Protocol: networkProtocol(a), AddressWithPrefix: fromAddr(a).WithPrefix()}
	if err := h.programs.AddProtocolAddress(programNIC, pa, nstack.AddressProperties{PEB: primary}); err != nil {
		tb.Fatal(err)
	}
}

// startRelay gives the host a relay; o's link and addresses are filled in.
func (h *lanHost) startRelay(tb testing.TB, o Options, inbound ...uint16) {
	tb.Helper()
	h.tunLink = newLink(65535, true)
	o.Link = h.tunLink
	o.Host4, o.Stack4, o.Host6, o.Stack6 = h.h4, h.s4, h.h6, h.s6
	if o.WireMTU == nil {
		o.WireMTU = func(netip.Addr) uint32 { return lanMTU }
	}
	o.InjectPacket = func(packet []byte) error {
		h.fromTUN(append([]byte(nil), packet...))
		return nil
	}
	o.OriginalDst = func(remote, stack netip.AddrPort) (netip.AddrPort, bool) {
		if stack.Addr() == h.s4 {
			return netip.AddrPortFrom(h.addr4, stack.Port()), true
		}
		return netip.AddrPortFrom(h.addr6, stack.Port()), true
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(testWriter{tb}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	s, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	h.relay = s
	for _, p := range inbound {
		h.inbound[p] = true
	}
	h.l.serve(h.tunLink, h.fromTUN)
	h.captures.Store(true)
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b[:max(len(b)-1, 0)])
	return len(b), nil
}

// serve hands what a stack sends on link to f.
func (l *lan) serve(link *channel.Endpoint, f func(packet []byte)) {
	l.wg.Go(func() {
		for {
			pkt := link.ReadContext(l.ctx)
			if pkt == nil {
				return
			}
			b := pkt.ToBuffer()
			pkt.DecRef()
			packet := b.Flatten()
			b.Release()
			f(packet)
		}
	})
}

func deliver(link *channel.Endpoint, packet []byte) {
	proto := ipv4.ProtocolNumber
	if packet[0]>>4 == 6 {
		proto = ipv6.ProtocolNumber
	}
	pkt := nstack.NewPacketBuffer(nstack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
	defer pkt.DecRef()
	link.InjectInbound(proto, pkt)
}

func addresses(packet []byte) (src, dst netip.Addr) {
	if packet[0]>>4 == 6 {
		return netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
	}
	return netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
}

// setAddresses rewrites a packet's; the TCP checksum is nobody's concern here.
func setAddresses(packet []byte, src, dst netip.Addr) {
	if packet[0]>>4 == 6 {
		s, d := src.As16(), dst.As16()
		copy(packet[8:24], s[:])
		copy(packet[24:40], d[:])
		return
	}
	s, d := src.As4(), dst.As4()
	copy(packet[12:16], s[:])
	copy(packet[16:20], d[:])
	ip := header.IPv4(packet)
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
}

// fromPrograms routes what the host's programs send.
func (h *lanHost) fromPrograms(packet []byte) {
	if h.relay == nil || !h.captures.Load() {
		h.toWire(packet)
		return
	}
	if h.relay.Bypass(packet) {
		h.fromTUN(packet)
		return
	}
	deliver(h.tunLink, packet)
}

// fromTUN routes what the relay sends.
func (h *lanHost) fromTUN(packet []byte) {
	src, dst := addresses(packet)
	switch dst {
	case h.addr4, h.addr6, h.h4, h.h6:
		if h.onProgram != nil {
			h.onProgram(packet)
		}
		deliver(h.programLink, packet)
		return
	}
	if _, _, seg, ok := parseTCP(packet); ok && h.inbound[header.TCP(seg).SourcePort()] {
		switch src { // undo DNAT
		case h.s4:
			setAddresses(packet, h.addr4, dst)
		case h.s6:
			setAddresses(packet, h.addr6, dst)
		}
	}
	h.toWire(packet)
}

// toWire carries a packet of h's to its destination.
func (h *lanHost) toWire(packet []byte) {
	h.l.mu.Lock()
	wire, nowhere := h.l.wire, h.l.nowhere
	h.l.mu.Unlock()
	if wire != nil && !wire(packet) {
		return
	}
	src, dst := addresses(packet)
	for _, to := range h.l.hosts {
		switch dst {
		case to.s4, to.s6:
			deliver(to.tunLink, packet)
			return
		case to.addr4, to.addr6:
			if _, _, seg, ok := parseTCP(packet); ok && to.inbound[header.TCP(seg).DestinationPort()] {
				s := to.s6
				if dst.Is4() {
					s = to.s4
				}
				setAddresses(packet, src, s)
				deliver(to.tunLink, packet)
				return
			}
			deliver(to.programLink, packet)
			return
		}
	}
	if nowhere != nil {
		nowhere(h, packet)
	}
}
