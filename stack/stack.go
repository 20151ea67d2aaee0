package stack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
)

// The two NICs, see split.
const (
	hostNIC = 1
	wireNIC = 2
)

// A Stack relays every TCP connection that arrives on its link. All methods may be
// called from several goroutines at once.
type Stack struct {
	opt Options
	net *nstack.Stack
	log *slog.Logger

	outbound *tcp.Forwarder
	inbound  *tcp.Forwarder

	syns   synTable
	conns  connTable
	flows  flowTable
	memory memory
	work   workers

	remoteLog logLimit
	counters  counters

	stop     chan struct{} // closed by Close and Reset: no new connections, no waiting
	stopOnce sync.Once
	closed   sync.Once
	wg       sync.WaitGroup // handlers of SYNs; added to by admit alone
}

// counters is Counters as it grows.
type counters struct {
	limited, dropped, refused, unreachable, timedOut, plainRefused, aborted atomic.Uint64
}

// Counters count, since New, what does not show in the table of connections.
type Counters struct {
	Limited      uint64 // opportunistic SYNs beyond the limits: passed in clear
	Dropped      uint64 // SYNs dropped at the limits
	Refused      uint64 // connections refused by the far end, either direction
	Unreachable  uint64 // outbound connections ended by an ICMP error
	TimedOut     uint64 // outbound connections that nothing answered
	PlainRefused uint64 // connections reset because the policy is require and the peer has no encryption
	Aborted      uint64 // open connections that ended by reset, time-out or bad data
}

// New assembles a stack on o.Link and begins to relay. Close ends it.
func New(o Options) (*Stack, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	o.Limits, o.timing = o.Limits.withDefaults(), o.timing.withDefaults()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.KeepAlive == (tcp.KeepAlive{}):
		o.KeepAlive = wireKeepAlive
	case o.KeepAlive.Idle < 0:
		o.KeepAlive = tcp.KeepAlive{}
	}
	if o.MTU == 0 {
		o.MTU = o.Link.MTU()
	}
	s := &Stack{
		opt:       o,
		log:       o.Log,
		stop:      make(chan struct{}),
		remoteLog: newLogLimit(remoteLogRate, remoteLogBurst),
	}
	s.syns.init(o.Limits, o.timing)
	s.conns.init()
	s.memory.init()
	s.flows.init(o.Limits.Flows, o.Existing)
	if n := len(o.Existing) - o.Limits.Flows; n > 0 {
		s.log.Warn("too many existing connections: the rest will be reset", slog.Int("rest", n))
	}
	if err := s.assemble(); err != nil {
		return nil, err
	}
	// Two per processor: a worker never blocks, but it may seal for some 100 us at a time.
	s.work.start(2 * runtime.GOMAXPROCS(0))
	if err := s.attach(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// assemble makes netstack, without its NIC.
func (s *Stack) assemble() error {
	s.net = nstack.New(nstack.Options{
		NetworkProtocols:   []nstack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []nstack.TransportProtocolFactory{s.newTCP()},
	})
	if err := TuneTCP(s.net, s.opt.NoRACK); err != nil {
		return err
	}
	// The forwarders' own limits are never met: admit counts first.
	s.outbound = tcp.NewForwarder(s.net, defaultBuffer, 2*s.opt.Limits.Dials, s.dialOut)
	s.inbound = tcp.NewForwarder(s.net, defaultBuffer, 2*s.opt.Limits.HalfOpen, s.acceptIn)
	s.net.SetTransportProtocolHandler(tcp.ProtocolNumber, s.handleUnmatched)
	return nil
}

// attach makes the NICs: from here on packets arrive.
func (s *Stack) attach() error {
	sp := newSplit(s.opt.Link, s.opt.Stack4, s.opt.Stack6, s.unreachable)
	var routes []tcpip.Route
	for _, nic := range []struct {
		id   tcpip.NICID
		link nstack.LinkEndpoint
	}{{hostNIC, sp.host}, {wireNIC, sp.wire}} {
		if err := s.net.CreateNICWithOptions(nic.id, nic.link, nstack.NICOptions{Disabled: true}); err != nil {
			return fmt.Errorf("stack: create a NIC: %w", tcpipError(err))
		}
		if s.opt.Stack4.IsValid() {
			routes = append(routes, tcpip.Route{Destination: header.IPv4EmptySubnet, NIC: nic.id})
		}
		if s.opt.Stack6.IsValid() {
			routes = append(routes, tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: nic.id})
		}
	}
	s.net.SetRouteTable(routes)
	for _, a := range []netip.Addr{s.opt.Stack4, s.opt.Stack6} {
		if !a.IsValid() {
			continue
		}
		pa := tcpip.ProtocolAddress{Protocol: networkProtocol(a), AddressWithPrefix: fromAddr(a).WithPrefix()}
		if err := s.net.AddProtocolAddress(wireNIC, pa, nstack.AddressProperties{}); err != nil {
			return fmt.Errorf("stack: add %s: %w", a, tcpipError(err))
		}
	}
	// On the host side packets to any captured destination are ours, and its address is the
	// source of the answers.
	if err := s.net.SetPromiscuousMode(hostNIC, true); err != nil {
		return fmt.Errorf("stack: set promiscuous mode: %w", tcpipError(err))
	}
	if err := s.net.SetSpoofing(hostNIC, true); err != nil {
		return fmt.Errorf("stack: set spoofing: %w", tcpipError(err))
	}
	for _, id := range []tcpip.NICID{wireNIC, hostNIC} {
		if err := s.net.EnableNIC(id); err != nil {
			return fmt.Errorf("stack: enable a NIC: %w", tcpipError(err))
		}
	}
	return nil
}

// Conns returns the connections that are opening or open, and with closed also the
// last ones that ended (60 s, at most 1,024), oldest first.
func (s *Stack) Conns(closed bool) []Conn { return s.conns.snapshot(closed) }

// Conn returns the connection that is opening or open between local and remote, as
// Conns has them. Of an inbound one local may also be H and the service's port, which is
// what the service's getsockname says.
func (s *Stack) Conn(local, remote netip.AddrPort) (c Conn, ok bool) {
	found := s.conns.find(unmapped(local), unmapped(remote))
	if found == nil {
		return Conn{}, false
	}
	return found.snapshot(), true
}

// Rekey replaces the keys of these connections, without ids of all that are encrypted
// and open. It returns of how many; the others are skipped.
func (s *Stack) Rekey(ids ...uint64) (n int) {
	for _, c := range s.conns.get(ids) {
		if c.rekey() {
			n++
		}
	}
	return n
}

func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// Counters returns the counts so far.
func (s *Stack) Counters() Counters {
	c := &s.counters
	return Counters{
		Limited:      c.limited.Load(),
		Dropped:      c.dropped.Load(),
		Refused:      c.refused.Load(),
		Unreachable:  c.unreachable.Load(),
		TimedOut:     c.timedOut.Load(),
		PlainRefused: c.plainRefused.Load(),
		Aborted:      c.aborted.Load(),
	}
}

// Reset ends relaying: it resets both legs of every connection, forgets pending ones
// (their programs' SYNs stay unanswered) and takes no new ones. The link stays, so the
// resets get out. It returns when they are on the link and the table is empty, or with
// ctx's error.
func (s *Stack) Reset(ctx context.Context) error {
	s.stopOnce.Do(func() { close(s.stop) })
	s.syns.close()
	s.conns.each((*conn).abort)
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		s.conns.waitEmpty()
		close(done)
	}()
	// Handshakes in work, and legs whose connection is over for us but whose tail is not
	// acknowledged yet. A handler that had just looked at stop may begin one more.
	again := time.NewTicker(resetCheck)
	defer again.Stop()
	for {
		for _, ep := range s.net.RegisteredEndpoints() {
			ep.Abort()
		}
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("stack: reset: %w", context.Cause(ctx))
		case <-again.C:
		}
	}
}

// Close resets what is left, closes the link and returns when all goroutines have
// gone. It may be called twice.
func (s *Stack) Close() error {
	var err error
	s.closed.Do(func() {
		err = s.Reset(context.Background())
		s.flows.close()
		s.net.Close()
		s.net.Wait()
		s.work.close()
	})
	return err
}

// Bypass reports whether a raw IP packet that came from the host belongs to a
// connection that passes in clear, one that is older than we (policy opportunistic) or
// was beyond the limits, and is to be written back to the link as it is. It borrows
// packet, of which the headers are enough. Packets of anything else go to netstack, which resets what it does not know:
// that may be the tail of an encrypted connection.
func (s *Stack) Bypass(packet []byte) bool { return s.flows.bypass(packet) }

var errStopped = errors.New("stack: stopped")

// tcpipError makes an error of netstack's, which is not one.
func tcpipError(err tcpip.Error) error {
	if err == nil {
		return nil
	}
	return errors.New(err.String())
}
