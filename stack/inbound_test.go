package stack

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	stocktcp "gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// anyInbound lets every port in, opportunistically.
func anyInbound(netip.AddrPort, netip.AddrPort) (Rule, bool) { return Rule{}, true }

func TestInboundPlainFromStockPeer(t *testing.T) {
	for _, family := range []string{"ip4", "ip6"} {
		t.Run(family, func(t *testing.T) {
			l := newLAN(t)
			a, b := l.addHost(t), l.addHost(t)
			b.startRelay(t, Options{Inbound: anyInbound}, 80)
			client, h, dst := a.addr4, b.h4, b.addr4
			if family == "ip6" {
				client, h, dst = a.addr6, b.h6, b.addr6
			}
			from := make(chan net.Addr, 1)
			b.serve(t, h, 80, func(c *gonet.TCPConn) { from <- c.RemoteAddr(); echo(c) })
			c := a.mustDial(t, netip.AddrPortFrom(dst, 80))
			data := randomBytes(2, 2<<20)
			if got := exchange(t, c, data); !bytes.Equal(got, data) {
				t.Fatalf("%d bytes came back, want the %d that were sent", len(got), len(data))
			}
			if got, want := <-from, c.LocalAddr(); got.String() != want.String() {
				t.Errorf("the service saw %s, want the client's own %s", got, want)
			}
			waitFor(t, "the connection is closed", func() bool { return len(b.relay.Conns(false)) == 0 })
			conns := b.relay.Conns(true)
			if len(conns) != 1 {
				t.Fatalf("%d connections, want 1: %+v", len(conns), conns)
			}
			got := conns[0]
			if got.Direction != Inbound || got.Local != netip.AddrPortFrom(dst, 80) || got.Remote.Addr() != client ||
				got.Reason != "no-eno" || got.BytesSent != uint64(len(data)) || got.BytesReceived != uint64(len(data)) {
				t.Errorf("table says %+v", got)
			}
		})
	}
}

// One client port may be in use towards several of our ports.
func TestInboundFromOnePortToTwoServices(t *testing.T) {
	l := newLAN(t)
	a, b := l.addHost(t), l.addHost(t)
	b.startRelay(t, Options{Inbound: anyInbound}, 80, 81)
	var conns []*gonet.TCPConn
	for _, port := range []uint16{80, 81} {
		b.serve(t, b.h4, port, echo)
		conns = append(conns, dialFrom(t, a, 5555, netip.AddrPortFrom(b.addr4, port)))
	}
	for i, c := range conns {
		data := randomBytes(uint64(i), 1000)
		if got := exchange(t, c, data); !bytes.Equal(got, data) {
			t.Errorf("service %d: %d bytes came back, want %d", i, len(got), len(data))
		}
	}
}

// A client may use a port again while the host side still waits for the tail of its last
// connection: netstack's own picks such ports, by chance seven times in a thousand connections.
func TestInboundFromOnePortTwice(t *testing.T) {
	l := newLAN(t)
	a, b := l.addHost(t), l.addHost(t)
	b.startRelay(t, Options{Inbound: anyInbound}, 80)
	b.serve(t, b.h4, 80, echo)
	for i := range 2 {
		c := dialFrom(t, a, 5555, netip.AddrPortFrom(b.addr4, 80))
		data := randomBytes(uint64(i), 1000)
		if got := exchange(t, c, data); !bytes.Equal(got, data) {
			t.Fatalf("connection %d: %d bytes came back, want %d", i, len(got), len(data))
		}
		waitFor(t, "the connection is closed", func() bool { return len(b.relay.Conns(false)) == 0 })
		_ = c.Close()
		waitFor(t, "all but TIME_WAIT is over", func() bool { return onlyTimeWait(a.programs) && onlyTimeWait(b.relay.net) })
		// What the client's own TCP keeps of it is ended, as a program may ask.
		for _, ep := range a.programs.RegisteredEndpoints() {
			ep.Abort()
		}
	}
}

// onlyTimeWait reports whether s has no endpoint in another state.
func onlyTimeWait(s *nstack.Stack) bool {
	for _, ep := range s.RegisteredEndpoints() {
		if e, ok := ep.(interface{ State() uint32 }); ok && stocktcp.EndpointState(e.State()) != stocktcp.StateTimeWait {
			return false
		}
	}
	return true
}

// dialFrom dials from a port that others may have, too.
func dialFrom(t *testing.T, h *lanHost, port uint16, dst netip.AddrPort) *gonet.TCPConn {
	t.Helper()
	var wq waiter.Queue
	ep, err := h.programs.NewEndpoint(stocktcp.ProtocolNumber, networkProtocol(dst.Addr()), &wq)
	if err != nil {
		t.Fatal(err)
	}
	ep.SocketOptions().SetReuseAddress(true)
	ep.SocketOptions().SetReusePort(true)
	if err := ep.Bind(fullAddress(programNIC, netip.AddrPortFrom(h.addr4, port))); err != nil {
		t.Fatal(err)
	}
	entry, connected := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	ep.Connect(fullAddress(programNIC, dst))
	select {
	case <-connected:
	case <-time.After(10 * time.Second):
		t.Fatalf("no connection from port %d to %s", port, dst)
	}
	if st := stocktcp.EndpointState(ep.State()); st != stocktcp.StateEstablished {
		t.Fatalf("connection from port %d to %s is %s", port, dst, st)
	}
	c := gonet.NewTCPConn(&wq, ep)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestInboundRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		opt  Options
	}{
		{"no rule", Options{Inbound: func(netip.AddrPort, netip.AddrPort) (Rule, bool) { return Rule{}, false }}},
		{"nobody listens", Options{Inbound: anyInbound, Listening: func(uint16, netip.AddrPort) bool { return false }}},
		{"the service is gone when dialled", Options{Inbound: anyInbound}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLAN(t)
			a, b := l.addHost(t), l.addHost(t)
			b.startRelay(t, tt.opt, 80)
			c, err := a.dial(t, netip.AddrPortFrom(b.addr4, 80))
			if err == nil {
				// Only when the handshake had to be completed to know.
				defer func() { _ = c.Close() }()
				if _, err = c.Read(make([]byte, 1)); !isReset(err) {
					t.Errorf("read: %v, want a reset", err)
				}
			} else if !isRefused(err) && !isReset(err) {
				t.Errorf("dial: %v, want refused", err)
			}
			waitFor(t, "it is counted", func() bool { return b.relay.Counters().Refused == 1 })
		})
	}
}
