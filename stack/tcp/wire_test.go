package tcp_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

// checkOptions holds the packets of one connection against what RFC 8547, section
// 4.6, wants: the option in every segment until the sender disables the negotiation or
// has received a segment that is more than the handshake. active is who sent the first
// SYN. Resets need none. It returns how many segments carried it.
func checkOptions(t *testing.T, packets []*tcptest.Packet, kind byte) (n int) {
	t.Helper()
	var got [2]bool // the sender of this direction has received data, FIN or more than its SYN's ACK
	var iss [2]uint32
	for i, p := range packets {
		if p.IsSYN() {
			iss[p.Dir] = p.TCP().SequenceNumber()
		}
		if p.Flags(header.TCPFlagRst) {
			continue
		}
		option := p.Option(kind)
		if option != nil {
			n++
		}
		switch {
		case p.IsSYN():
			if len(option) <= 2 {
				t.Errorf("packet %d: SYN without a SYN-form option: %s", i, p)
			}
		case got[p.Dir] && option != nil:
			t.Errorf("packet %d: option after a non-SYN segment was received: %s", i, p)
		case !got[p.Dir] && p.Dir == tcptest.AtoB && len(option) != 2:
			t.Errorf("packet %d: no option before a non-SYN segment was received: %s", i, p)
		case p.Dir == tcptest.BtoA && option != nil:
			t.Errorf("packet %d: the passive side has the ACK and still sends the option: %s", i, p)
		}
		if !p.IsSYN() && (len(p.Payload()) > 0 || p.Flags(header.TCPFlagFin) || p.TCP().AckNumber() != iss[1-p.Dir]+1) {
			got[1-p.Dir] = true
		}
	}
	return n
}

// TestOptionStandsWhereItMust over a whole connection, for each family.
func TestOptionStandsWhereItMust(t *testing.T) {
	for _, family := range []netip.Addr{tcptest.B4, tcptest.B6} {
		t.Run(family.String(), func(t *testing.T) {
			// The passive end keeps silent until the active one has sent its hello, so
			// there is no race about who sent what before what arrived.
			p := tcptest.New(t, opts(new(toy), new(toy)))
			p.Trace()
			l := p.Listen(p.B, netip.AddrPortFrom(family, port), 10)
			defer l.Close()
			c := p.NewConn(p.A, family)
			if err := c.StartConnect(netip.AddrPortFrom(family, port)); err != nil {
				t.Fatal(err)
			}
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(c.WaitReady(), s.WaitReady()); err != nil {
				t.Fatal(err)
			}
			ends{p, c, s}.finish(t)
			packets := p.Packets()
			if n := checkOptions(t, packets, toyKind); n < 4 {
				t.Errorf("%d segments with the option, want SYN, SYN-ACK, ACK and hello at least", n)
			}
		})
	}
}

// TestPlainSendsNoOption: a connection without negotiation never carries the option,
// and one that the peer declines carries it in the SYN alone.
func TestPlainSendsNoOption(t *testing.T) {
	for _, tt := range []struct {
		name string
		a, b *toy
		want int
	}{
		{"off", &toy{Off: true}, new(toy), 0},
		{"declined", new(toy), nil, 1},
		{"not offered", nil, new(toy), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tcptest.New(t, opts(tt.a, tt.b))
			p.Trace()
			e := connect(t, p)
			e.exchange(t, 5000)
			e.finish(t)
			n := 0
			for _, pk := range p.Packets() {
				if pk.Option(toyKind) != nil {
					n++
				}
			}
			if n != tt.want {
				t.Errorf("%d segments with the option, want %d", n, tt.want)
			}
		})
	}
}

// TestLossOfEachHandshakeSegment loses the first copy of each of the first segments in
// turn, and some pairs.
func TestLossOfEachHandshakeSegment(t *testing.T) {
	for lost := range 8 {
		for second := lost; second < 8; second += 3 {
			t.Run(fmt.Sprintf("%d and %d", lost, second), func(t *testing.T) {
				t.Parallel()
				p := tcptest.New(t, opts(new(toy), new(toy)))
				n := 0
				p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
					n++
					if n-1 == lost || n-1 == second {
						return nil
					}
					return []*tcptest.Packet{pk}
				})
				e := connect(t, p)
				if !e.active.Secure().Encrypted() || !e.server.Secure().Encrypted() {
					t.Error("not encrypted")
				}
				e.exchange(t, 10000)
				e.finish(t)
			})
		}
	}
}

// TestBareACKInSYNReceived is netstack's answer to a repeated SYN while the ACK of the
// opener is missing: that bare ACK must carry the option, and must not stop the
// opener's.
func TestBareACKInSYNReceived(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	p.Trace()
	var mu sync.Mutex
	acks, repeated := 0, false
	var syn *tcptest.Packet
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case pk.Dir == tcptest.AtoB && pk.IsSYN():
			syn = pk.Clone()
		case pk.Dir == tcptest.AtoB && acks < 2:
			// The ACK and the hello behind it are lost; the SYN arrives once more.
			acks++
			if acks == 1 {
				return []*tcptest.Packet{syn}
			}
			return nil
		case pk.Dir == tcptest.BtoA && !pk.IsSYN() && !repeated:
			repeated = true
			if len(pk.Option(toyKind)) != 2 {
				t.Errorf("bare ACK in SYN-RCVD without the option: %s", pk)
			}
		}
		return []*tcptest.Packet{pk}
	})
	e := connect(t, p)
	if !e.active.Secure().Encrypted() || !e.server.Secure().Encrypted() {
		t.Error("not encrypted at both ends")
	}
	e.exchange(t, 10000)
	e.finish(t)
	mu.Lock()
	defer mu.Unlock()
	if !repeated {
		t.Error("no bare ACK was seen")
	}
}

// TestStrippedFromAnyHandshakeSegment: without the option in one of them the ends
// agree on plain, or the one that is committed aborts; and nobody hangs.
func TestStrippedFromAnyHandshakeSegment(t *testing.T) {
	for _, tt := range []struct {
		name  string
		strip func(*tcptest.Packet) bool
	}{
		{"SYN", func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.AtoB && pk.IsSYN() }},
		{"SYN-ACK", func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.BtoA && pk.IsSYN() }},
		{"both", (*tcptest.Packet).IsSYN},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tcptest.New(t, opts(new(toy), new(toy)))
			p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
				if tt.strip(pk) {
					pk.Strip(toyKind)
				}
				return []*tcptest.Packet{pk}
			})
			e := connect(t, p)
			if e.active.Secure().Encrypted() {
				t.Error("encrypted")
			}
			e.exchange(t, 10000)
			e.finish(t)
		})
	}
}

// TestStrippedFromACK: the opener is committed and the other end is plain; what the
// opener gets is not the handshake's, and it aborts with an error.
func TestStrippedFromACK(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
		if pk.Dir == tcptest.AtoB && !pk.IsSYN() {
			pk.Strip(toyKind)
		}
		return []*tcptest.Packet{pk}
	})
	l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, port), 10)
	defer l.Close()
	c := p.NewConn(p.A, tcptest.B4)
	if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, port)); err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("HTTP/1.1 400 Bad Request\r\n")); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(); err == nil {
		t.Fatal("the opener did not abort")
	}
	if c.Secure().Err() == nil {
		t.Error("no cause")
	}
	if _, err := c.Read(make([]byte, 10)); tcpError(err) == nil {
		t.Errorf("read: %v, want an abort", err)
	}
	c.Close()
	s.Close()
}

// TestRequireResetsPlainPeer: a Negotiator that refuses resets before any data, from
// either end, with its own error.
func TestRequireResetsPlainPeer(t *testing.T) {
	t.Run("active", func(t *testing.T) {
		p := tcptest.New(t, opts(&toy{Require: true}, nil))
		p.Trace()
		l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, port), 10)
		defer l.Close()
		c, err := p.Dial(p.A, netip.AddrPortFrom(tcptest.B4, port))
		if !errors.Is(err, errToyRefused) {
			t.Errorf("dial: %v, want %v", err, errToyRefused)
		}
		if _, err := c.Write([]byte("secret")); err == nil {
			t.Error("write worked")
		}
		c.Close()
		p.Await(func(pk *tcptest.Packet) bool { return pk.Flags(header.TCPFlagRst) })
		reset := false
		for _, pk := range p.Packets() {
			if len(pk.Payload()) > 0 {
				t.Errorf("data: %s", pk)
			}
			reset = reset || pk.Dir == tcptest.AtoB && pk.Flags(header.TCPFlagRst)
			if pk.Dir == tcptest.AtoB && !pk.IsSYN() && !pk.Flags(header.TCPFlagRst) {
				t.Errorf("the SYN-ACK was acknowledged: %s", pk)
			}
		}
		if !reset {
			t.Error("no reset was sent")
		}
	})
	t.Run("forwarder", func(t *testing.T) {
		p := tcptest.New(t, opts(nil, &toy{Require: true}))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		got := p.Forward(ctx, p.B)
		c := p.NewConn(p.A, tcptest.B4)
		if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, port)); err != nil {
			t.Fatal(err)
		}
		s := <-got
		var e *tcp.Error
		if err, ok := tcpError(s.Err).(*tcp.Error); !ok || !errors.Is(err.Cause(), errToyRefused) {
			t.Errorf("CreateEndpoint: %v (%T), want %v", s.Err, e, errToyRefused)
		}
		for {
			if _, err := c.Read(make([]byte, 1)); err != nil {
				if _, ok := tcpError(err).(*tcpip.ErrConnectionReset); !ok {
					t.Errorf("read: %v, want a reset", err)
				}
				break
			}
		}
		c.Close()
	})
	t.Run("listener", func(t *testing.T) {
		p := tcptest.New(t, opts(nil, &toy{Require: true}))
		l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, port), 10)
		defer l.Close()
		c := p.NewConn(p.A, tcptest.B4)
		if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, port)); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitReady(); err == nil {
			_, err = c.Read(make([]byte, 1))
			if _, ok := tcpError(err).(*tcpip.ErrConnectionReset); !ok {
				t.Errorf("read: %v, want a reset", err)
			}
		}
		if _, _, err := l.EP.Accept(nil); err == nil {
			t.Error("the refused connection was accepted")
		}
		c.Close()
	})
}
