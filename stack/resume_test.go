package stack

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// newCache returns a cache that lives as long as the test.
func newCache(tb testing.TB) *tcpcrypt.Cache {
	tb.Helper()
	c := tcpcrypt.NewCache(tcpcrypt.CacheOptions{})
	tb.Cleanup(c.Close)
	return c
}

// A resumePair is two hosts with relays that have caches, and an echo on port 80 of both.
type resumePair struct {
	l      *lan
	a, b   *lanHost
	ca, cb *tcpcrypt.Cache
	ids    map[string]bool // session ids so far
}

func newResumePair(t *testing.T, ruleA, ruleB Rule) *resumePair {
	t.Helper()
	p := &resumePair{l: newLAN(t), ca: newCache(t), cb: newCache(t), ids: make(map[string]bool)}
	p.a, p.b = p.l.addHost(t), p.l.addHost(t)
	outA, inA := withRule(ruleA)
	outB, inB := withRule(ruleB)
	p.a.startRelay(t, Options{Outbound: outA, Inbound: inA, Cache: p.ca}, 80)
	p.b.startRelay(t, Options{Outbound: outB, Inbound: inB, Cache: p.cb}, 80)
	p.a.serve(t, p.a.h4, 80, echo)
	p.b.serve(t, p.b.h4, 80, echo)
	return p
}

// dial exchanges data over one connection, and checks that both ends know it as
// encrypted, with one session ID that is new.
func (p *resumePair) dial(t *testing.T, from, to *lanHost, resumed bool) Conn {
	t.Helper()
	data := randomBytes(21, 100_000)
	if got := exchange(t, from.mustDial(t, netip.AddrPortFrom(to.addr4, 80)), data); !bytes.Equal(got, data) {
		t.Fatalf("%d bytes came back, want %d", len(got), len(data))
	}
	noConnsLeft(t, from, to)
	c, s := from.lastConn(t), to.lastConn(t)
	for _, c := range []Conn{c, s} {
		if !c.Encrypted || c.Resumed != resumed || len(c.SessionID) != tcpcrypt.SessionIDLen || c.SessionID[0]&0x80 != 0 != resumed {
			t.Fatalf("resumed %v wanted, the table says %+v", resumed, c)
		}
	}
	if !bytes.Equal(c.SessionID, s.SessionID) || c.TEP != s.TEP || c.AEAD != s.AEAD || c.Role == s.Role {
		t.Fatalf("the ends differ: %+v and %+v", c, s)
	}
	if p.ids[string(c.SessionID)] {
		t.Fatalf("session id %x twice", c.SessionID)
	}
	p.ids[string(c.SessionID)] = true
	return c
}

func TestResumeEveryTEP(t *testing.T) {
	for _, tep := range tcpcrypt.TEPs() {
		t.Run(tep.String(), func(t *testing.T) {
			rule := Rule{Policy: Require, Options: tcpcrypt.Options{TEPs: []tcpcrypt.TEP{tep}}}
			p := newResumePair(t, rule, rule)
			first := p.dial(t, p.a, p.b, false)
			for range 3 {
				if c := p.dial(t, p.a, p.b, true); c.TEP != tep || c.AEAD != first.AEAD || c.Role != tcpcrypt.RoleA {
					t.Errorf("%+v after %+v", c, first)
				}
			}
			// Roles reversed: who answered opens. It needs a session that it opened itself.
			p.dial(t, p.b, p.a, false)
			p.dial(t, p.b, p.a, true)
			p.dial(t, p.a, p.b, true)
		})
	}
}

func TestResumeWithNoncesOfAnyLength(t *testing.T) {
	for _, short := range [][2]int{{0, 0}, {8, 8}, {5, 0}, {0, 5}, {8, 0}, {5, 8}} {
		t.Run(fmt.Sprintf("%d and %d", 8-short[0], 8-short[1]), func(t *testing.T) {
			p := newResumePair(t, Rule{Options: tcpcrypt.Options{ShortNonce: short[0]}}, Rule{Options: tcpcrypt.Options{ShortNonce: short[1]}})
			p.dial(t, p.a, p.b, false)
			for range 3 {
				p.dial(t, p.a, p.b, true)
			}
		})
	}
}

func TestResumptionOffByRule(t *testing.T) {
	for _, off := range [][2]bool{{true, false}, {false, true}, {true, true}} {
		t.Run(fmt.Sprint(off), func(t *testing.T) {
			p := newResumePair(t, Rule{NoResumption: off[0]}, Rule{NoResumption: off[1]})
			for range 2 {
				p.dial(t, p.a, p.b, false)
			}
			for i, c := range []*tcpcrypt.Cache{p.ca, p.cb} {
				if got := len(c.Sessions()) == 0; got != off[i] {
					t.Errorf("end %d keeps none: %v, want %v", i, got, off[i])
				}
			}
		})
	}
}

// A peer that forgot answers with a fresh key exchange in the same handshake, and the
// session that it forgot is dropped here.
func TestPeerForgot(t *testing.T) {
	p := newResumePair(t, Rule{}, Rule{})
	p.dial(t, p.a, p.b, false)
	p.dial(t, p.a, p.b, true)
	old := p.ca.Sessions()[0].ID
	if n := p.cb.Flush(netip.Addr{}); n != 1 {
		t.Fatalf("flushed %d", n)
	}
	p.dial(t, p.a, p.b, false)
	if s := p.ca.Sessions(); len(s) != 1 || s[0].ID == old {
		t.Errorf("the opener has %+v, session %d is stale", s, old)
	}
	p.dial(t, p.a, p.b, true)
	p.ca.Flush(p.b.addr4)
	p.dial(t, p.a, p.b, false)
	p.dial(t, p.a, p.b, true)
}

// A peer that does not take the offer up for another reason has said as much.
func TestOfferThatIsStrippedIsDropped(t *testing.T) {
	p := newResumePair(t, Rule{}, Rule{})
	p.dial(t, p.a, p.b, false)
	p.l.onWire(func(packet []byte) bool {
		if _, _, seg, ok := parseTCP(packet); ok {
			stripENO(header.TCP(seg))
		}
		return true
	})
	exchange(t, p.a.mustDial(t, netip.AddrPortFrom(p.b.addr4, 80)), []byte("hello"))
	noConnsLeft(t, p.a, p.b)
	if c := p.a.lastConn(t); c.Encrypted {
		t.Errorf("table says %+v", c)
	}
	if s := p.ca.Sessions(); len(s) != 0 {
		t.Errorf("kept: %+v", s)
	}
}

// Connections at once take secrets of their own, from either end.
func TestResumeInParallel(t *testing.T) {
	p := newResumePair(t, Rule{Policy: Require}, Rule{Policy: Require})
	p.dial(t, p.a, p.b, false)
	p.dial(t, p.b, p.a, false)
	const each, atOnce = 12, 6
	var wg sync.WaitGroup
	for _, way := range [][2]*lanHost{{p.a, p.b}, {p.b, p.a}} {
		slots := make(chan struct{}, atOnce)
		for range each {
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				c, err := way[0].dial(t, netip.AddrPortFrom(way[1].addr4, 80))
				if err != nil {
					t.Error(err)
					return
				}
				if got := exchange(t, c, []byte("hello")); string(got) != "hello" {
					t.Errorf("%q came back", got)
				}
			})
		}
	}
	wg.Wait()
	noConnsLeft(t, p.a, p.b)
	ids, resumed := make(map[string]int), 0
	for _, h := range []*lanHost{p.a, p.b} {
		for _, c := range h.relay.Conns(true) {
			if !c.Encrypted || len(c.SessionID) != tcpcrypt.SessionIDLen {
				t.Errorf("not encrypted: %+v", c)
			}
			if c.Resumed {
				resumed++
			}
			ids[string(c.SessionID)]++
		}
	}
	for id, n := range ids {
		if n != 2 {
			t.Errorf("session id %x %d times, want one at each end", id, n)
		}
	}
	if want := 2 + 2*each; len(ids) != want || resumed == 0 {
		t.Errorf("%d session ids, want %d; %d resumed", len(ids), want, resumed)
	}
}

// Keys are not used again after a restart: the sessions died with the process.
func TestRestartStartsFresh(t *testing.T) {
	p := newResumePair(t, Rule{}, Rule{})
	p.dial(t, p.a, p.b, false)
	p.dial(t, p.a, p.b, true)
	if err := p.b.relay.Close(); err != nil {
		t.Fatal(err)
	}
	p.cb.Close()
	_, in := withRule(Rule{})
	p.b.startRelay(t, Options{Inbound: in, Cache: newCache(t)}, 80)
	p.dial(t, p.a, p.b, false)
	p.dial(t, p.a, p.b, true)
}

// A resumed connection's first byte leaves behind the ACK of the handshake: one round
// trip before a fresh one's. A flight is a run of the opener's segments up to the
// answerer's next one.
func TestResumedDataIsARoundTripEarlier(t *testing.T) {
	for _, policy := range []Policy{Opportunistic, Require} {
		t.Run(policy.String(), func(t *testing.T) {
			p := newResumePair(t, Rule{Policy: policy}, Rule{Policy: policy})
			var answers, sizeSYN, sizeSYNACK atomic.Int32 // answers: segments with SYN or data from the peer
			var first atomic.Int32                        // answers before the opener's first record
			first.Store(-1)
			port80 := func(h header.TCP) bool { return h.SourcePort() == 80 }
			p.l.onWire(func(packet []byte) bool {
				_, _, seg, ok := parseTCP(packet)
				if !ok {
					return true
				}
				h := header.TCP(seg)
				syn, body := h.Flags().Contains(header.TCPFlagSyn), h.Payload()
				switch {
				case port80(h):
					if syn {
						sizeSYNACK.Store(int32(len(enoOf(h))))
					}
					if syn || len(body) > 0 {
						answers.Add(1)
					}
				case syn:
					sizeSYN.Store(int32(len(enoOf(h))))
					if len(h.Options()) > 40 {
						t.Error("too many options")
					}
					o := header.ParseSynOptions(h.Options(), false)
					if o.MSS != lanMTU-40 || !o.SACKPermitted || !o.TS || o.WS < 0 {
						t.Errorf("options are missing of %x", h.Options())
					}
				case len(body) > 4 && !bytes.HasPrefix(body, tcpcryptInit1):
					first.CompareAndSwap(-1, answers.Load())
				}
				return true
			})
			for _, want := range []struct{ answers, syn, synACK int32 }{
				{2, 4, 4},   // SYN-ACK, Init2
				{1, 21, 21}, // SYN-ACK; 2 + other TEP 1 + 18, and 2 + global 1 + 18
			} {
				answers.Store(0)
				first.Store(-1)
				p.dial(t, p.a, p.b, want.syn == 21)
				if got := first.Load(); got != want.answers {
					t.Errorf("the first record left after %d answers, want %d", got, want.answers)
				}
				if s, a := sizeSYN.Load(), sizeSYNACK.Load(); s != want.syn || a != want.synACK {
					t.Errorf("ENO of %d and %d bytes, want %d and %d", s, a, want.syn, want.synACK)
				}
			}
		})
	}
}

var tcpcryptInit1 = []byte{0x15, 0x10, 0x1a, 0x0e}
