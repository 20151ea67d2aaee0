package tcp_test

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

// reconnect connects from a fixed port of A.
func reconnect(t *testing.T, p *tcptest.Pair, from uint16) *tcptest.Conn {
	t.Helper()
	c := p.NewConn(p.A, tcptest.A4)
	if err := c.EP.Bind(tcptest.Full(netip.AddrPortFrom(tcptest.A4, from))); err != nil {
		t.Fatalf("Bind: %s", err)
	}
	if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, port)); err != nil {
		t.Fatal(err)
	}
	return c
}

// closeServerFirst closes s, then c, which leaves s in TIME-WAIT, and waits for that.
func closeServerFirst(t *testing.T, c, s *tcptest.Conn) {
	t.Helper()
	state := func() tcp.EndpointState { return tcp.EndpointState(s.EP.State()) }
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("read: %v", err)
	}
	c.Close()
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("read: %v", err)
	}
	s.Close()
	waitFor(t, s.Queue, func() bool { return state() == tcp.StateTimeWait })
	waitFor(t, c.Queue, func() bool { return tcp.EndpointState(c.EP.State()) == tcp.StateClose })
}

// TestTimeWaitUnderAForwarder: a client that uses its port again is served at once,
// encrypted or plain. Upstream drops its SYNs for a minute.
func TestTimeWaitUnderAForwarder(t *testing.T) {
	for _, off := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", off), func(t *testing.T) {
			p := tcptest.New(t, opts(new(toy), &toy{Off: off}))
			p.Trace()
			got := p.Forward(t.Context(), p.B)
			var first *tcptest.Packet
			for i := range 3 {
				c := reconnect(t, p, 5000)
				s := <-got
				if err := errors.Join(s.Err, c.WaitReady()); err != nil {
					t.Fatalf("connection %d: %v", i, err)
				}
				ends{p, c, s.Conn}.exchange(t, 1000)
				closeServerFirst(t, c, s.Conn)
				if i == 0 {
					first = p.Packets()[0]
				}
			}
			// An old duplicate of the first SYN does not end TIME-WAIT.
			p.Inject(first)
			select {
			case a := <-got:
				t.Errorf("an old SYN made a connection: %v", a.Err)
				if a.Err == nil {
					a.Close()
				}
			case <-time.After(20 * time.Millisecond):
			}
			n := 0
			for _, pk := range p.Packets() {
				if pk.Dir == tcptest.AtoB && pk.Flags(header.TCPFlagSyn) {
					n++
				}
			}
			if n != 3 {
				t.Errorf("%d SYNs for three connections", n)
			}
		})
	}
}

// TestTimeWaitUnderAListener works as upstream.
func TestTimeWaitUnderAListener(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, port), 10)
	defer l.Close()
	for i := range 2 {
		c := reconnect(t, p, 5000)
		s, err := l.Accept()
		if err := errors.Join(err, c.WaitReady()); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		closeServerFirst(t, c, s)
	}
}

// TestTimeWaitPerEndpoint: an endpoint's own time, instead of the stack's.
func TestTimeWaitPerEndpoint(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	long := tcpip.TCPTimeWaitTimeoutOption(time.Hour)
	if err := p.B.SetTransportProtocolOption(tcp.ProtocolNumber, &long); err != nil {
		t.Fatal(err)
	}
	e := connect(t, p)
	e.server.Secure().SetTimeWait(time.Millisecond)
	if err := e.server.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.active.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	e.close()
	waitFor(t, e.server.Queue, func() bool { return tcp.EndpointState(e.server.EP.State()) == tcp.StateClose })
}
