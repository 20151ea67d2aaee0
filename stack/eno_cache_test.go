package stack

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

var (
	enoServer = netip.MustParseAddrPort("203.0.113.1:80")
	enoClient = netip.MustParseAddrPort("203.0.113.2:4711")
)

// An enoEnd is one end of a connection between two negotiators, without TCP.
type enoEnd struct {
	*ENO
	o    NegotiatorOptions
	sent []byte // option of the SYN or SYN-ACK
}

func newENOEnd(t *testing.T, o NegotiatorOptions) *enoEnd {
	t.Helper()
	o.Peer = enoServer
	if !o.Active {
		o.Peer = enoClient
	}
	e, err := NewNegotiator(o)
	if err != nil {
		t.Fatal(err)
	}
	return &enoEnd{ENO: e, o: o}
}

// unread is a net.Conn as the stream of a key exchange.
type unread struct{ net.Conn }

func (unread) Unread([]byte) {}

// decideENO exchanges the options between an opener and an answerer.
func decideENO(t *testing.T, a, p *enoEnd) (sa, sp tcp.Session) {
	t.Helper()
	const room = 21
	a.sent = a.SYNOption(room, 0)
	p.ReceiveSYN(a.sent)
	p.sent = p.SYNOption(room, 0)
	sa, errA := a.ReceiveACK(p.sent, true)
	sp, errP := p.ReceiveACK(a.NonSYNOption(), false)
	if errA != nil || errP != nil || sa == nil || sp == nil {
		t.Fatalf("not encrypted: %v, %v", errA, errP)
	}
	return sa, sp
}

// connectENO does decideENO and the key exchange, and closes.
func connectENO(t *testing.T, a, p *enoEnd) {
	t.Helper()
	sa, sp := decideENO(t, a, p)
	ca, cp := net.Pipe()
	errs := make(chan error, 1)
	go func() {
		_, err := sp.Handshake(t.Context(), unread{cp})
		errs <- err
	}()
	_, err := sa.Handshake(t.Context(), unread{ca})
	if errP := <-errs; err != nil || errP != nil {
		t.Fatalf("handshakes: %v, %v", err, errP)
	}
	if a.TCPCryptSession().ID() != p.TCPCryptSession().ID() {
		t.Fatal("the session ids differ")
	}
	sa.Close()
	sp.Close()
}

// freshENO leaves one session in both caches.
func freshENO(t *testing.T) (ca, cp *tcpcrypt.Cache) {
	t.Helper()
	ca, cp = newCache(t), newCache(t)
	a, p := newENOEnd(t, NegotiatorOptions{Active: true, Cache: ca}), newENOEnd(t, NegotiatorOptions{Cache: cp})
	connectENO(t, a, p)
	for _, tt := range []struct {
		e      *enoEnd
		c      *tcpcrypt.Cache
		active bool
	}{{a, ca, true}, {p, cp, false}} {
		s := tt.c.Sessions()
		if len(s) != 1 || s[0].Active != tt.active || s[0].Peer != tt.e.o.Peer || s[0].ID != tt.e.Chain() {
			t.Fatalf("cached %+v, chain %d", s, tt.e.Chain())
		}
	}
	return ca, cp
}

// resumes reports whether the option that e sent has an identifier half.
func (e *enoEnd) resumes() bool { return len(e.sent) == 21 }

func TestENOChainAndFlush(t *testing.T) {
	ca, cp := freshENO(t)
	chain := ca.Sessions()[0].ID
	a, p := newENOEnd(t, NegotiatorOptions{Active: true, Cache: ca}), newENOEnd(t, NegotiatorOptions{Cache: cp})
	if a.Chain() != 0 {
		t.Error("a chain before anything was decided")
	}
	connectENO(t, a, p)
	if a.Chain() != chain || p.Chain() != cp.Sessions()[0].ID {
		t.Errorf("chains %d and %d", a.Chain(), p.Chain())
	}
	if !a.Flush() || len(ca.Sessions()) != 0 || a.Flush() {
		t.Errorf("flushed, and kept %+v", ca.Sessions())
	}
}

func TestENONoResume(t *testing.T) {
	for _, active := range []bool{true, false} {
		ca, cp := freshENO(t)
		a := newENOEnd(t, NegotiatorOptions{Active: true, Cache: ca, NoResume: active})
		p := newENOEnd(t, NegotiatorOptions{Cache: cp, NoResume: !active})
		connectENO(t, a, p)
		if a.resumes() == active || p.resumes() {
			t.Errorf("options %x and %x", a.sent, p.sent)
		}
		if active && ca.Sessions()[0].Index != 1 {
			t.Error("a secret was claimed and not offered")
		}
	}
}

func TestENONoKeep(t *testing.T) {
	ca, cp := newCache(t), newCache(t)
	connectENO(t, newENOEnd(t, NegotiatorOptions{Active: true, Cache: ca, NoKeep: true}), newENOEnd(t, NegotiatorOptions{Cache: cp}))
	if len(ca.Sessions()) != 0 || len(cp.Sessions()) != 1 {
		t.Errorf("fresh: kept %+v and %+v", ca.Sessions(), cp.Sessions())
	}
	ca, cp = freshENO(t)
	a := newENOEnd(t, NegotiatorOptions{Active: true, Cache: ca})
	p := newENOEnd(t, NegotiatorOptions{Cache: cp, NoKeep: true})
	connectENO(t, a, p)
	if !p.resumes() || len(ca.Sessions()) != 1 || len(cp.Sessions()) != 0 || p.Chain() != 0 {
		t.Errorf("resumed %v: kept %+v and %+v", p.resumes(), ca.Sessions(), cp.Sessions())
	}
}

// Silence says nothing about the session, and no room is not the peer's fault.
func TestENOKeepsWhatThePeerDidNotDecline(t *testing.T) {
	ca, _ := freshENO(t)
	a := newENOEnd(t, NegotiatorOptions{Active: true, Cache: ca})
	if a.sent = a.SYNOption(21, 0); !a.resumes() {
		t.Fatalf("no offer: %x", a.sent)
	}
	if got := a.SYNOption(21, synsWithENO); got != nil {
		t.Fatalf("not withdrawn: %x", got)
	}
	if _, err := a.ReceiveACK(nil, true); err != nil || len(ca.Sessions()) != 1 {
		t.Errorf("%v, kept %+v after silence", err, ca.Sessions())
	}
	a = newENOEnd(t, NegotiatorOptions{Active: true, Cache: ca})
	if got := a.SYNOption(8, 0); len(got) != 3 {
		t.Fatalf("%x in 8 bytes", got)
	}
	if _, err := a.ReceiveACK([]byte{tcpcrypt.OptionKind, 4, 1, 0x23}, true); err != nil || len(ca.Sessions()) != 1 {
		t.Errorf("%v, kept %+v without an offer", err, ca.Sessions())
	}
}

// A connection that ends before its keys are there leaves no secret, at any point.
func TestENOAbandonErases(t *testing.T) {
	ca, cp := freshENO(t)
	offer := ca.Claim(ca.Sessions()[0].Peer, tcpcrypt.Options{})
	a := newENOEnd(t, NegotiatorOptions{Active: true, Options: tcpcrypt.Options{Offer: offer}})
	if own, _ := offer.Halves(); own == [tcpcrypt.IdentifierHalfLen]byte{} {
		t.Fatal("nothing to offer")
	}
	a.Abandon()
	if own, _ := offer.Halves(); own != [tcpcrypt.IdentifierHalfLen]byte{} {
		t.Error("an offer that no SYN had is there still")
	}
	a, p := newENOEnd(t, NegotiatorOptions{Active: true, Cache: ca}), newENOEnd(t, NegotiatorOptions{Cache: cp})
	sa, sp := decideENO(t, a, p)
	if !a.resumes() || !p.resumes() {
		t.Fatalf("options %x and %x", a.sent, p.sent)
	}
	for _, s := range []tcp.Session{sa, sp} {
		s.Close()
		if _, err := s.Handshake(t.Context(), unread{}); err == nil {
			t.Error("resumed after the end")
		}
	}
	b := newENOEnd(t, NegotiatorOptions{Active: true, Cache: ca})
	if b.sent = b.SYNOption(21, 0); !b.resumes() || bytes.Equal(b.sent[:13], a.sent[:13]) {
		t.Errorf("offers %x and then %x", a.sent, b.sent)
	}
}
