package tcp_test

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

// TestHalfClose: each end's stream ends by itself, and data flows the other way.
func TestHalfClose(t *testing.T) {
	for _, first := range []string{"active", "passive"} {
		t.Run(first, func(t *testing.T) {
			p := tcptest.New(t, opts(new(toy), new(toy)))
			e := connect(t, p)
			one, other := e.active, e.server
			if first == "passive" {
				one, other = other, one
			}
			send(t, one, other, random(10000))
			if _, err := one.Write([]byte("x")); tcpError(err) == nil {
				t.Errorf("write after the end: %v", err)
			}
			send(t, other, one, random(200_000))
			for _, c := range []*tcptest.Conn{one, other} {
				if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
					t.Errorf("read after the end: %d, %v", n, err)
				}
				if err := c.Secure().Err(); err != nil {
					t.Errorf("a clean end left %v", err)
				}
			}
			e.close()
		})
	}
}

// TestFINGoesWithTheLastRecord, in one segment, also when it is sent again or when the
// stream ends behind much data.
func TestFINGoesWithTheLastRecord(t *testing.T) {
	for _, size := range []int{0, 10, 100_000} {
		for _, lose := range []bool{false, true} {
			for _, offload := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d/lose=%v/offload=%v", size, lose, offload), func(t *testing.T) {
					o := opts(new(toy), new(toy))
					o.Offload = offload
					p := tcptest.New(t, o)
					e := connect(t, p)
					p.Trace()
					fins := 0
					p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
						if pk.Dir == tcptest.AtoB && pk.Flags(header.TCPFlagFin) {
							if fins++; fins == 1 && lose {
								return nil
							}
						}
						return []*tcptest.Packet{pk}
					})
					send(t, e.active, e.server, random(size))
					send(t, e.server, e.active, random(size))
					e.close()
					fin := p.Await(func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.AtoB && pk.Flags(header.TCPFlagFin) })
					if len(fin.Payload()) < toyOverhead || !fin.Flags(header.TCPFlagPsh) {
						t.Errorf("FIN is not with the last record: %s", fin)
					}
					if n := p.A.Stats().TCP.CurrentEstablished.Value(); n != 0 {
						t.Errorf("%d connections are still established", n)
					}
				})
			}
		}
	}
}

// TestCloseWithUnreadDataResets, in TCP or in the record layer, and without it ends the
// stream cleanly, whatever records without data are there.
func TestCloseWithUnreadData(t *testing.T) {
	for _, tt := range []struct {
		name  string
		read  int
		reset bool
	}{
		{"all of it", 0, true},
		{"half a record", 500, true},
		{"none", 1000, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tcptest.New(t, opts(new(toy), new(toy)))
			e := connect(t, p)
			p.Trace()
			if _, err := e.server.Write(random(1000)); err != nil {
				t.Fatal(err)
			}
			waitFor(t, e.active.Queue, func() bool { return e.active.EP.Readiness(waiter.ReadableEvents) != 0 })
			if tt.read > 0 {
				if _, err := io.ReadFull(e.active, make([]byte, tt.read)); err != nil {
					t.Fatal(err)
				}
			}
			e.active.Close()
			_, err := e.server.Read(make([]byte, 1))
			if _, reset := tcpError(err).(*tcpip.ErrConnectionReset); reset != tt.reset {
				t.Errorf("the peer's read: %v", err)
			}
			e.server.Close()
		})
	}
}

// TestCloseThenPeersLastRecord: the peer's last record reaches an endpoint that is
// closed. It is no data, and nobody gets a reset.
func TestCloseThenPeersLastRecord(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	p.Trace()
	e.active.Close()
	if n, err := e.server.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read: %d, %v", n, err)
	}
	if err := e.server.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	fin := p.Await(func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.BtoA && pk.Flags(header.TCPFlagFin) })
	p.Await(func(pk *tcptest.Packet) bool {
		return pk.Dir == tcptest.AtoB && pk.TCP().AckNumber() == fin.TCP().SequenceNumber()+uint32(len(fin.Payload()))+1
	})
	e.server.Close()
	for _, pk := range p.Packets() {
		if pk.Flags(header.TCPFlagRst) {
			t.Errorf("reset: %s", pk)
		}
	}
}

// TestDataToAClosedEndpointResets, as in TCP.
func TestDataToAClosedEndpointResets(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	p.Trace()
	e.active.Close()
	if _, err := e.server.Write(random(1000)); err != nil {
		t.Fatal(err)
	}
	p.Await(func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.AtoB && pk.Flags(header.TCPFlagRst) })
	var err error
	for err == nil {
		_, err = e.server.Write(random(1000))
	}
	e.server.Close()
}

// TestShutdownBothThenClose leaves nothing behind, at once or later.
func TestShutdownBothThenClose(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	if err := e.active.EP.Shutdown(tcpip.ShutdownRead | tcpip.ShutdownWrite); err != nil {
		t.Fatal(err)
	}
	if n, err := e.server.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read: %d, %v, want the end", n, err)
	}
	if n, err := e.active.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read after Shutdown: %d, %v, want the end", n, err)
	}
	e.close()
	for _, c := range []*tcptest.Conn{e.active, e.server} {
		neg := c.Secure().Negotiator().(*toyNeg)
		waitFor(t, c.Queue, neg.closed.Load)
		if err := c.Secure().Err(); err != nil {
			t.Errorf("a clean end left %v", err)
		}
	}
}

// TestSessionOfUnacceptedConnectionIsClosed: nobody takes the connection from the accept
// queue, and its session is wiped all the same when it ends.
func TestSessionOfUnacceptedConnectionIsClosed(t *testing.T) {
	for name, end := range map[string]func(*tcptest.Conn, *tcptest.Listener){
		"reset":    func(c *tcptest.Conn, _ *tcptest.Listener) { c.EP.Abort() },
		"listener": func(_ *tcptest.Conn, l *tcptest.Listener) { l.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			passive := new(toy)
			p := tcptest.New(t, opts(new(toy), passive))
			to := netip.AddrPortFrom(tcptest.B4, port)
			l := p.Listen(p.B, to, 10)
			defer l.Close()
			c := p.NewConn(p.A, tcptest.B4)
			defer c.Close()
			if err := c.StartConnect(to); err != nil {
				t.Fatal(err)
			}
			<-c.Secure().Decided()
			waitFor(t, l.Queue, func() bool { return l.EP.Readiness(waiter.ReadableEvents) != 0 })
			end(c, l)
			waitFor(t, l.Queue, passive.last().closed.Load)
		})
	}
}
