package tcp_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

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
