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

// TestSYNCookiesNegotiateNothing: under cookies there is no state to remember an
// option in.
func TestSYNCookiesNegotiateNothing(t *testing.T) {
	ext := new(toy)
	p := tcptest.New(t, opts(new(toy), ext))
	always := tcpip.TCPAlwaysUseSynCookies(true)
	if err := p.B.SetTransportProtocolOption(tcp.ProtocolNumber, &always); err != nil {
		t.Fatal(err)
	}
	p.Trace()
	e := connect(t, p)
	if e.active.Secure().Encrypted() {
		t.Error("active end encrypted")
	}
	if s, ok := tcp.AsSecure(e.server.EP); ok && s.Encrypted() {
		t.Error("passive end encrypted")
	}
	e.exchange(t, 10000)
	e.finish(t)
	if n := p.B.Stats().TCP.ListenOverflowSynCookieRcvd.Value(); n != 1 {
		t.Errorf("%d cookies received, want 1", n)
	}
	if ext.last() != nil {
		t.Error("the extension was asked about a SYN that a cookie answered")
	}
	for _, pk := range p.Packets() {
		if pk.Option(toyKind) != nil && (pk.Dir == tcptest.BtoA || !pk.IsSYN()) {
			t.Errorf("option outside the SYN: %s", pk)
		}
	}
}

// TestDataInSYN: it is neither acknowledged nor delivered, and the same bytes in a
// later segment are ordinary data.
func TestDataInSYN(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) {
			p := tcptest.New(t, opts(&toy{Off: plain}, new(toy)))
			p.Trace()
			p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
				if pk.IsSYN() {
					pk.SetPayload([]byte("data in a SYN"))
				}
				return []*tcptest.Packet{pk}
			})
			e := connect(t, p)
			e.exchange(t, 10000)
			e.finish(t)
			var syn *tcptest.Packet
			for _, pk := range p.Packets() {
				switch {
				case pk.Dir == tcptest.AtoB && pk.IsSYN():
					syn = pk
				case pk.Dir == tcptest.BtoA && pk.IsSYN():
					if got, want := pk.TCP().AckNumber(), syn.TCP().SequenceNumber()+1; got != want {
						t.Errorf("SYN-ACK acknowledges %d, want %d", got, want)
					}
				}
			}
		})
	}
}

// TestSYNFallback: after two unanswered SYNs with the option comes one without, and
// what follows is plain whatever the answer says.
func TestSYNFallback(t *testing.T) {
	p := tcptest.New(t, opts(&toy{Fallback: 2}, new(toy)))
	p.Trace()
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
		if pk.IsSYN() && pk.Option(toyKind) != nil {
			return nil // a middlebox that drops what it does not know
		}
		return []*tcptest.Packet{pk}
	})
	e := connect(t, p)
	if e.active.Secure().Encrypted() {
		t.Error("encrypted")
	}
	e.exchange(t, 10000)
	e.finish(t)
	with, without := 0, 0
	for _, pk := range p.Packets() {
		if pk.Dir == tcptest.AtoB && pk.IsSYN() {
			if pk.Option(toyKind) != nil {
				with++
			} else {
				without++
			}
		}
	}
	if with != 2 || without != 1 {
		t.Errorf("%d SYNs with the option and %d without, want 2 and 1", with, without)
	}
}

// TestRepeatedSYNIsTheSame: the option does not change between the copies of a SYN or
// a SYN-ACK.
func TestRepeatedSYNIsTheSame(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	p.Trace()
	var seen [2]int
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
		if pk.IsSYN() {
			if seen[pk.Dir]++; seen[pk.Dir] == 1 {
				return nil
			}
		}
		return []*tcptest.Packet{pk}
	})
	e := connect(t, p)
	if !e.active.Secure().Encrypted() {
		t.Error("not encrypted")
	}
	e.finish(t)
	var first [2]string
	for _, pk := range p.Packets() {
		if !pk.IsSYN() {
			continue
		}
		o := string(pk.Option(toyKind))
		if first[pk.Dir] == "" {
			first[pk.Dir] = o
		}
		if o == "" || o != first[pk.Dir] {
			t.Errorf("option %x, first was %x", o, first[pk.Dir])
		}
	}
}

// TestSimultaneousOpen: both ends send a SYN. netstack drops the peer's SYN-ACK then
// and completes on bare ACKs, which must carry the option.
func TestSimultaneousOpen(t *testing.T) {
	for _, tt := range []struct {
		name string
		a, b *toy
		want bool
	}{
		{"both", new(toy), new(toy), true},
		{"one declines", new(toy), &toy{Off: true}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tcptest.New(t, opts(tt.a, tt.b))
			p.Trace()
			var held []*tcptest.Packet
			p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
				// The first SYN waits for the other.
				if pk.Flags(header.TCPFlagSyn) && !pk.Flags(header.TCPFlagAck) && held != nil || len(held) == 0 && pk.IsSYN() {
					held = append(held, pk)
					if len(held) == 2 {
						return held
					}
					return nil
				}
				return []*tcptest.Packet{pk}
			})
			a, b := p.NewConn(p.A, tcptest.A4), p.NewConn(p.B, tcptest.B4)
			atA, atB := netip.AddrPortFrom(tcptest.A4, 1000), netip.AddrPortFrom(tcptest.B4, 2000)
			for _, c := range []struct {
				conn     *tcptest.Conn
				from, to netip.AddrPort
			}{{a, atA, atB}, {b, atB, atA}} {
				if err := c.conn.EP.Bind(tcptest.Full(c.from)); err != nil {
					t.Fatal(err)
				}
				if err := c.conn.StartConnect(c.to); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(a.WaitReady(), b.WaitReady()); err != nil {
				t.Fatal(err)
			}
			if got := [2]bool{a.Secure().Encrypted(), b.Secure().Encrypted()}; got != [2]bool{tt.want, tt.want} {
				t.Errorf("encrypted: %v, want %v at both ends", got, tt.want)
			}
			e := ends{p, a, b}
			e.exchange(t, 10000)
			e.finish(t)
			if len(held) != 2 {
				t.Fatal("the SYNs did not cross")
			}
			for _, pk := range p.Packets() {
				if tt.want && pk.IsSYN() && len(pk.Option(toyKind)) != 4 {
					t.Errorf("SYN without the option: %s", pk)
				}
			}
		})
	}
}

// TestAbandonedWhenNeverDecided: a Negotiator hears of its connection's end.
func TestAbandonedWhenNeverDecided(t *testing.T) {
	ext := new(toy)
	p := tcptest.New(t, opts(ext, nil))
	c, err := p.Dial(p.A, netip.AddrPortFrom(tcptest.B4, port))
	if _, ok := tcpError(err).(*tcpip.ErrConnectionRefused); !ok {
		t.Errorf("dial: %v, want refused", err)
	}
	c.Close()
	if n := ext.last(); !n.abandoned.Load() || n.decided.Load() {
		t.Errorf("abandoned %v, decided %v", n.abandoned.Load(), n.decided.Load())
	}
}
