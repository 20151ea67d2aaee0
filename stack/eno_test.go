package stack_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tcpcrypt/tcpcrypt/stack"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

const enoPort = 80

// enoExtension negotiates for every connection of a stack.
type enoExtension struct {
	options tcpcrypt.Options
	require bool

	mu   sync.Mutex
	last *stack.ENO
}

func (x *enoExtension) negotiator(active bool) tcp.Negotiator {
	n, err := stack.NewNegotiator(stack.NegotiatorOptions{Options: x.options, Active: active, Require: x.require})
	if err != nil {
		panic(err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.last = n
	return n
}

func (x *enoExtension) Active(tcp.Conn) tcp.Negotiator { return x.negotiator(true) }

func (*enoExtension) Cookie(tcp.Conn) error { return nil }

func (x *enoExtension) Passive(tcp.Conn, []byte) tcp.Negotiator { return x.negotiator(false) }

func (x *enoExtension) eno() *stack.ENO {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.last
}

// enoPair joins two stacks with ENO; a nil extension is upstream's TCP.
func enoPair(tb testing.TB, a, b *enoExtension) *tcptest.Pair {
	tb.Helper()
	var o tcptest.Options
	if a != nil {
		o.A = tcp.NewProtocolWithExtension(a)
	}
	if b != nil {
		o.B = tcp.NewProtocolWithExtension(b)
	}
	return tcptest.New(tb, o)
}

// enoConnect opens a connection from A to a listener, or a Forwarder, on B.
func enoConnect(tb testing.TB, p *tcptest.Pair, family netip.Addr, forward bool) (c, s *tcptest.Conn) {
	tb.Helper()
	at := netip.AddrPortFrom(family, enoPort)
	c = p.NewConn(p.A, family)
	var err error
	if forward {
		got := p.Forward(tb.Context(), p.B)
		if err := c.StartConnect(at); err != nil {
			tb.Fatal(err)
		}
		a := <-got
		s, err = a.Conn, a.Err
	} else {
		l := p.Listen(p.B, at, 10)
		tb.Cleanup(l.Close)
		if err := c.StartConnect(at); err != nil {
			tb.Fatal(err)
		}
		s, err = l.Accept()
	}
	if err := errors.Join(err, c.WaitReady(), s.WaitReady()); err != nil {
		tb.Fatal(err)
	}
	return c, s
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * i >> 3)
	}
	return b
}

// talk sends n bytes each way, ends both streams and closes.
func talk(tb testing.TB, c, s *tcptest.Conn, n int) {
	tb.Helper()
	want := pattern(n)
	for _, way := range [][2]*tcptest.Conn{{c, s}, {s, c}} {
		errc := make(chan error, 1)
		go func() {
			_, err := way[0].Write(want)
			errc <- errors.Join(err, way[0].CloseWrite())
		}()
		got, err := io.ReadAll(way[1])
		if err := errors.Join(err, <-errc); err != nil {
			tb.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			tb.Fatalf("%d bytes differ from the %d sent", len(got), len(want))
		}
	}
	c.Close()
	s.Close()
}

// TestEveryTEPAndAEAD: both ends agree on roles, names and the session ID.
func TestEveryTEPAndAEAD(t *testing.T) {
	for _, tep := range tcpcrypt.TEPs() {
		for _, aead := range tcpcrypt.AEADs() {
			for _, forward := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/forward=%v", tep, aead, forward), func(t *testing.T) {
					family := tcptest.B4
					if forward {
						family = tcptest.B6
					}
					o := tcpcrypt.Options{TEPs: []tcpcrypt.TEP{tep}, AEADs: []tcpcrypt.AEAD{aead}}
					a, b := &enoExtension{options: o}, &enoExtension{options: o, require: true}
					p := enoPair(t, a, b)
					c, s := enoConnect(t, p, family, forward)
					for _, e := range []*stack.ENO{a.eno(), b.eno()} {
						out, ok := e.Outcome()
						if !ok || !out.Encrypted || out.Reason != "" || out.TEP != tep || out.Resumed {
							t.Errorf("outcome %+v, %v", out, ok)
						}
						if got := e.TCPCryptSession().AEAD(); got != aead {
							t.Errorf("AEAD %s", got)
						}
					}
					oa, _ := a.eno().Outcome()
					ob, _ := b.eno().Outcome()
					if oa.Role != tcpcrypt.RoleA || ob.Role != tcpcrypt.RoleB {
						t.Errorf("roles %s and %s", oa.Role, ob.Role)
					}
					ia, ib := a.eno().TCPCryptSession().ID(), b.eno().TCPCryptSession().ID()
					if ia != ib || ia[0] != byte(tep) {
						t.Errorf("session IDs %s and %s", ia, ib)
					}
					talk(t, c, s, 300_000)
				})
			}
		}
	}
}

// TestWhyPlain: the reason that each end keeps.
func TestWhyPlain(t *testing.T) {
	onlyP256 := tcpcrypt.Options{TEPs: []tcpcrypt.TEP{tcpcrypt.P256}}
	only25519 := tcpcrypt.Options{TEPs: []tcpcrypt.TEP{tcpcrypt.Curve25519}}
	for _, tt := range []struct {
		name         string
		a, b         *enoExtension
		strip        func(*tcptest.Packet) bool
		wantA, wantB tcpcrypt.Reason // empty: that end has no ENO
	}{
		{"peer has none", new(enoExtension), nil, nil, tcpcrypt.ReasonNoENO, ""},
		{"opener has none", nil, new(enoExtension), nil, "", tcpcrypt.ReasonNoENO},
		{"no common TEP", &enoExtension{options: onlyP256}, &enoExtension{options: only25519}, nil, tcpcrypt.ReasonNoENO, tcpcrypt.ReasonNoCommonTEP},
		{"same role", &enoExtension{options: tcpcrypt.Options{PassiveRole: true}}, new(enoExtension), nil, tcpcrypt.ReasonNoENO, tcpcrypt.ReasonSameRole},
		{"stripped from the SYN", new(enoExtension), new(enoExtension),
			func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.AtoB && pk.IsSYN() }, tcpcrypt.ReasonNoENO, tcpcrypt.ReasonNoENO},
		{"stripped from the SYN-ACK", new(enoExtension), new(enoExtension),
			func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.BtoA && pk.IsSYN() }, tcpcrypt.ReasonNoENO, tcpcrypt.ReasonStripped},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := enoPair(t, tt.a, tt.b)
			p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
				if tt.strip != nil && tt.strip(pk) {
					pk.Strip(tcpcrypt.OptionKind)
				}
				return []*tcptest.Packet{pk}
			})
			c, s := enoConnect(t, p, tcptest.B4, false)
			for _, end := range []struct {
				x    *enoExtension
				want tcpcrypt.Reason
			}{{tt.a, tt.wantA}, {tt.b, tt.wantB}} {
				if end.x == nil {
					continue
				}
				if out, ok := end.x.eno().Outcome(); !ok || out.Encrypted || out.Reason != end.want {
					t.Errorf("outcome %+v, %v, want %s", out, ok, end.want)
				}
			}
			talk(t, c, s, 10_000)
		})
	}
}

// TestFallbackAfterTwoSYNs under an opportunistic policy, and never under require.
func TestFallbackAfterTwoSYNs(t *testing.T) {
	for _, require := range []bool{false, true} {
		t.Run(fmt.Sprintf("require=%v", require), func(t *testing.T) {
			t.Parallel()
			a := &enoExtension{require: require}
			p := enoPair(t, a, nil)
			p.Trace()
			p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
				if pk.Option(tcpcrypt.OptionKind) != nil {
					return nil
				}
				return []*tcptest.Packet{pk}
			})
			l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, enoPort), 10)
			defer l.Close()
			c := p.NewConn(p.A, tcptest.B4)
			if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, enoPort)); err != nil {
				t.Fatal(err)
			}
			if require {
				// The third SYN, after three seconds, is the one that would fall back.
				n := 0
				p.Await(func(pk *tcptest.Packet) bool {
					if pk.Option(tcpcrypt.OptionKind) == nil {
						t.Errorf("SYN without ENO: %s", pk)
					}
					n++
					return n == 3
				})
				c.Close()
				return
			}
			s, err := l.Accept()
			if err := errors.Join(err, c.WaitReady()); err != nil {
				t.Fatal(err)
			}
			if out, ok := a.eno().Outcome(); !ok || out.Reason != tcpcrypt.ReasonFallback {
				t.Errorf("outcome %+v, %v", out, ok)
			}
			talk(t, c, s, 1000)
			syns := 0
			for _, pk := range p.Packets() {
				if pk.Flags(header.TCPFlagSyn) && pk.Dir == tcptest.AtoB {
					syns++
				}
			}
			if syns != 3 {
				t.Errorf("%d SYNs, want 3", syns)
			}
		})
	}
}

// TestRequireRefusesAPlainPeer from either end, before any data and with the reason
// kept.
func TestRequireRefusesAPlainPeer(t *testing.T) {
	t.Run("active", func(t *testing.T) {
		a := &enoExtension{require: true}
		p := enoPair(t, a, nil)
		p.Trace()
		l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, enoPort), 10)
		defer l.Close()
		c, err := p.Dial(p.A, netip.AddrPortFrom(tcptest.B4, enoPort))
		if err == nil || c.Secure().Err() == nil {
			t.Errorf("dial: %v, cause %v", err, c.Secure().Err())
		}
		if out, ok := a.eno().Outcome(); !ok || out.Reason != tcpcrypt.ReasonNoENO {
			t.Errorf("outcome %+v, %v", out, ok)
		}
		p.Await(func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.AtoB && pk.Flags(header.TCPFlagRst) })
		c.Close()
	})
	t.Run("passive", func(t *testing.T) {
		b := &enoExtension{require: true}
		p := enoPair(t, nil, b)
		got := p.Forward(t.Context(), p.B)
		c := p.NewConn(p.A, tcptest.B4)
		if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, enoPort)); err != nil {
			t.Fatal(err)
		}
		s := <-got
		if s.Err == nil {
			t.Error("the plain connection was taken")
		}
		if out, ok := b.eno().Outcome(); !ok || out.Reason != tcpcrypt.ReasonNoENO {
			t.Errorf("outcome %+v, %v", out, ok)
		}
		for {
			if _, err := c.Read(make([]byte, 1)); err != nil {
				var e *tcptest.Error
				if !errors.As(err, &e) {
					t.Errorf("read: %v", err)
				} else if _, ok := e.TCP.(*tcpip.ErrConnectionReset); !ok {
					t.Errorf("read: %v, want a reset", err)
				}
				break
			}
		}
		c.Close()
	})
}

// TestTwoENOOptions in a SYN count as none.
func TestTwoENOOptions(t *testing.T) {
	for _, dir := range []tcptest.Direction{tcptest.AtoB, tcptest.BtoA} {
		t.Run(dir.String(), func(t *testing.T) {
			p := enoPair(t, new(enoExtension), new(enoExtension))
			p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
				if o := pk.Option(tcpcrypt.OptionKind); o != nil && pk.IsSYN() && pk.Dir == dir {
					pk.SetOptions(append(bytes.Clone(pk.Options()), o...))
				}
				return []*tcptest.Packet{pk}
			})
			c, s := enoConnect(t, p, tcptest.B4, false)
			if c.Secure().Encrypted() || s.Secure().Encrypted() {
				t.Error("encrypted")
			}
			talk(t, c, s, 1000)
		})
	}
}

// TestENOSimultaneousOpen: roles come from the b bits, and both ends have the same
// session.
func TestENOSimultaneousOpen(t *testing.T) {
	for _, same := range []bool{false, true} {
		t.Run(fmt.Sprintf("same role=%v", same), func(t *testing.T) {
			a := new(enoExtension)
			b := &enoExtension{options: tcpcrypt.Options{PassiveRole: !same}}
			p := enoPair(t, a, b)
			var held []*tcptest.Packet
			p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
				if len(held) < 2 {
					if held = append(held, pk); len(held) == 2 {
						return held
					}
					return nil
				}
				return []*tcptest.Packet{pk}
			})
			atA, atB := netip.AddrPortFrom(tcptest.A4, 1000), netip.AddrPortFrom(tcptest.B4, 2000)
			c, s := p.NewConn(p.A, tcptest.A4), p.NewConn(p.B, tcptest.B4)
			if err := c.EP.Bind(tcptest.Full(atA)); err != nil {
				t.Fatal(err)
			}
			if err := s.EP.Bind(tcptest.Full(atB)); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(c.StartConnect(atB), s.StartConnect(atA), c.WaitReady(), s.WaitReady()); err != nil {
				t.Fatal(err)
			}
			if c.Secure().Encrypted() == same || s.Secure().Encrypted() == same {
				t.Errorf("encrypted: %v and %v", c.Secure().Encrypted(), s.Secure().Encrypted())
			}
			if same {
				if out, _ := a.eno().Outcome(); out.Reason != tcpcrypt.ReasonSameRole {
					t.Errorf("outcome %+v", out)
				}
			} else if ia, ib := a.eno().TCPCryptSession().ID(), b.eno().TCPCryptSession().ID(); ia != ib {
				t.Errorf("session IDs %s and %s", ia, ib)
			}
			talk(t, c, s, 100_000)
		})
	}
}

// TestENOTampering: whatever changes on the wire once ENO is agreed ends in an error
// and a reset, with no byte delivered.
func TestENOTampering(t *testing.T) {
	for _, tt := range []struct {
		name string
		hook tcptest.Hook
	}{
		{"a TEP added to the SYN", func(pk *tcptest.Packet) []*tcptest.Packet {
			if o := pk.Option(tcpcrypt.OptionKind); o != nil && pk.Dir == tcptest.AtoB && pk.IsSYN() {
				o[len(o)-1] = byte(tcpcrypt.P521) // the transcript of the ends differs
				pk.Fix()
			}
			return []*tcptest.Packet{pk}
		}},
		{"a byte of Init1", tamper(tcptest.AtoB, 1, 20)},
		{"a byte of Init2", tamper(tcptest.BtoA, 1, 20)},
		{"the magic of Init2", tamper(tcptest.BtoA, 1, 0)},
		{"a byte of a record", tamper(tcptest.AtoB, 2, 30)},
		{"a record's tag", tamper(tcptest.AtoB, 2, -1)},
		{"a record's header", tamper(tcptest.AtoB, 2, 0)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := enoPair(t, new(enoExtension), new(enoExtension))
			p.SetHook(tt.hook)
			l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, enoPort), 10)
			defer l.Close()
			c := p.NewConn(p.A, tcptest.B4)
			if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, enoPort)); err != nil {
				t.Fatal(err)
			}
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write(pattern(1000)) // fails, or not yet
			_, _ = c.Write(pattern(1000))
			n, err := s.Read(make([]byte, 10))
			if n != 0 || err == nil || errors.Is(err, io.EOF) {
				t.Errorf("read: %d, %v", n, err)
			}
			if c.Secure().Err() == nil && s.Secure().Err() == nil {
				t.Error("neither end has a cause")
			}
			c.Close()
			s.Close()
		})
	}
}

// tamper flips a bit of a byte, counted from the end if negative, in the n-th segment
// with payload of a direction.
func tamper(dir tcptest.Direction, n, at int) tcptest.Hook {
	seen := 0
	return func(pk *tcptest.Packet) []*tcptest.Packet {
		if b := pk.Payload(); pk.Dir == dir && len(b) > 0 {
			if seen++; seen == n {
				b[(at+len(b))%len(b)] ^= 1
				pk.Fix()
			}
		}
		return []*tcptest.Packet{pk}
	}
}

// TestENOLossOfEachSegment of the handshake and the key exchange.
func TestENOLossOfEachSegment(t *testing.T) {
	for lost := range 8 {
		t.Run(fmt.Sprint(lost), func(t *testing.T) {
			t.Parallel()
			a, b := new(enoExtension), new(enoExtension)
			p := enoPair(t, a, b)
			n := 0
			p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
				if n++; n-1 == lost {
					return nil
				}
				return []*tcptest.Packet{pk}
			})
			c, s := enoConnect(t, p, tcptest.B4, false)
			if a.eno().TCPCryptSession().ID() != b.eno().TCPCryptSession().ID() {
				t.Error("session IDs differ")
			}
			talk(t, c, s, 50_000)
		})
	}
}

// TestENORekey: the sealer's next frame is under new keys, and the peer's endpoint
// answers though nobody reads there.
func TestENORekey(t *testing.T) {
	a, b := new(enoExtension), new(enoExtension)
	p := enoPair(t, a, b)
	c, s := enoConnect(t, p, tcptest.B4, false)
	for range 3 {
		a.eno().TCPCryptSession().Sealer().Rekey()
		if _, err := c.Write(pattern(100)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write(pattern(100)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range []*stack.ENO{a.eno(), b.eno()} {
		if local, remote := e.TCPCryptSession().Generations(); local != 3 || remote != 3 {
			t.Errorf("generations %d and %d, want 3", local, remote)
		}
	}
	talk(t, c, s, 100_000)
}

// TestENOBadPath: much data over a path that loses, reorders and cuts up segments.
func TestENOBadPath(t *testing.T) {
	p := enoPair(t, new(enoExtension), new(enoExtension))
	n := 0
	var held *tcptest.Packet
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
		n++
		switch {
		case n%97 == 0:
			return nil
		case held != nil && held.Dir == pk.Dir:
			h := held
			held = nil
			return append(pk.Split(500), h)
		case n%31 == 0 && held == nil:
			held = pk
			return nil
		case n%5 == 0:
			return pk.Split(1 + n%900)
		}
		return []*tcptest.Packet{pk}
	})
	c, s := enoConnect(t, p, tcptest.B6, true)
	talk(t, c, s, 3<<20)
}

// TestENOStandsWhereItMust: SYN, SYN-ACK, ACK and Init1 of an undisturbed connection
// carry it, and nothing else.
func TestENOStandsWhereItMust(t *testing.T) {
	p := enoPair(t, new(enoExtension), new(enoExtension))
	p.Trace()
	c, s := enoConnect(t, p, tcptest.B4, true)
	talk(t, c, s, 10_000)
	var got []string
	for _, pk := range p.Packets() {
		if o := pk.Option(tcpcrypt.OptionKind); o != nil {
			got = append(got, fmt.Sprintf("%s %x %d", pk.Dir, o, len(pk.Payload())))
		}
	}
	// Init1 is 4+4+1+2 for each AEAD+32+32.
	init1 := 73 + 2*len(tcpcrypt.DefaultAEADs())
	want := []string{"A>B 45042123 0", "B>A 45040123 0", "A>B 4502 0", fmt.Sprintf("A>B 4502 %d", init1)}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("ENO in %q, want %q", got, want)
	}
}

// TestNoENOUnderCookies: with the backlog full, SYNs are answered with cookies.
func TestNoENOUnderCookies(t *testing.T) {
	b := new(enoExtension)
	p := enoPair(t, new(enoExtension), b)
	// A backlog of one has no room for a half-open connection.
	l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, enoPort), 1)
	defer l.Close()
	c := p.NewConn(p.A, tcptest.B4)
	if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, enoPort)); err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err := errors.Join(err, c.WaitReady()); err != nil {
		t.Fatal(err)
	}
	if n := p.B.Stats().TCP.ListenOverflowSynCookieRcvd.Value(); n != 1 {
		t.Errorf("%d cookies, want 1", n)
	}
	if c.Secure().Encrypted() || b.eno() != nil {
		t.Error("negotiated under a cookie")
	}
	talk(t, c, s, 10_000)
}

// TestENOHandshakeEndsWithTheConnection: a session's handshake ends with its connection.
func TestENOHandshakeEndsWithTheConnection(t *testing.T) {
	a := new(enoExtension)
	p := enoPair(t, a, new(enoExtension))
	l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, enoPort), 10)
	defer l.Close()
	c := p.NewConn(p.A, tcptest.B4)
	if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, enoPort)); err != nil {
		t.Fatal(err)
	}
	<-c.Secure().Decided() // the other end answers Init1 only when it is accepted
	c.EP.Abort()
	<-c.Secure().Ready()
	if a.eno().TCPCryptSession() != nil {
		t.Error("there is a session")
	}
	if _, err := c.EP.Write(bytes.NewReader([]byte("x")), tcpip.WriteOptions{}); err == nil {
		t.Error("write worked")
	}
	if err := c.Secure().Err(); errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Err: %v", err)
	}
}
