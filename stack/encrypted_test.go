package stack

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

func withRule(r Rule) (out func(_, _ netip.AddrPort) Rule, in func(_, _ netip.AddrPort) (Rule, bool)) {
	return func(_, _ netip.AddrPort) Rule { return r }, func(_, _ netip.AddrPort) (Rule, bool) { return r, true }
}

// relayPair is two hosts with relays, the second with an echo service on port 80.
func relayPair(tb testing.TB, rule Rule) (l *lan, a, b *lanHost) {
	tb.Helper()
	l = newLAN(tb)
	a, b = l.addHost(tb), l.addHost(tb)
	out, in := withRule(rule)
	a.startRelay(tb, Options{Outbound: out})
	b.startRelay(tb, Options{Inbound: in}, 80)
	return l, a, b
}

// onlyConn returns the one connection that h's relay remembers.
func (h *lanHost) onlyConn(tb testing.TB) Conn {
	tb.Helper()
	conns := h.relay.Conns(true)
	if len(conns) != 1 {
		tb.Fatalf("%d connections, want 1: %+v", len(conns), conns)
	}
	return conns[0]
}

func TestEncryptedBetweenTwoRelays(t *testing.T) {
	for _, family := range []string{"ip4", "ip6"} {
		for _, policy := range []Policy{Opportunistic, Require} {
			t.Run(fmt.Sprintf("%s %s", family, policy), func(t *testing.T) {
				l, a, b := relayPair(t, Rule{Policy: policy})
				h, dst := b.h4, b.addr4
				if family == "ip6" {
					h, dst = b.h6, b.addr6
				}
				secret := bytes.Repeat([]byte("in the clear"), 20_000)
				l.onWire(func(packet []byte) bool {
					if bytes.Contains(packet, secret[:12]) {
						t.Error("plaintext on the wire")
					}
					return true
				})
				b.serve(t, h, 80, echo)
				if got := exchange(t, a.mustDial(t, netip.AddrPortFrom(dst, 80)), secret); !bytes.Equal(got, secret) {
					t.Fatalf("%d bytes came back, want %d", len(got), len(secret))
				}
				noConnsLeft(t, a, b)
				ca, cb := a.onlyConn(t), b.onlyConn(t)
				for _, c := range []Conn{ca, cb} {
					if !c.Encrypted || c.Reason != "" || c.TEP != tcpcrypt.Curve25519 || c.AEAD != tcpcrypt.AES128GCM || c.Resumed ||
						c.BytesSent != uint64(len(secret)) || c.BytesReceived != uint64(len(secret)) {
						t.Errorf("table says %+v", c)
					}
				}
				if ca.Role != tcpcrypt.RoleA || cb.Role != tcpcrypt.RoleB {
					t.Errorf("roles %v and %v, want A and B", ca.Role, cb.Role)
				}
				if len(ca.SessionID) != 33 || !bytes.Equal(ca.SessionID, cb.SessionID) {
					t.Errorf("session ids %x and %x, want the same 33 bytes", ca.SessionID, cb.SessionID)
				}
			})
		}
	}
}

func TestEncryptedEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		f    func(t *testing.T, client, server *lanHost, listen, dial netip.Addr)
	}{
		{"half-close by the client", halfCloseByClient},
		{"half-close by the server", halfCloseByServer},
		{"reset by the client", resetByClient},
		{"reset by the server", resetByServer},
		{"an answer before the reset", answerBeforeReset},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, a, b := relayPair(t, Rule{Policy: Require})
			tt.f(t, a, b, b.h4, b.addr4)
			if got := a.onlyConn(t); !got.Encrypted {
				t.Errorf("not encrypted: %+v", got)
			}
		})
	}
}

func TestEncryptedManyConnections(t *testing.T) {
	_, a, b := relayPair(t, Rule{Policy: Require})
	b.serve(t, b.h4, 80, echo)
	runMany(t, a, netip.AddrPortFrom(b.addr4, 80), 200, 20)
	noConnsLeft(t, a, b)
}

func TestEncryptedBigTransfers(t *testing.T) {
	_, a, b := relayPair(t, Rule{})
	b.serve(t, b.h4, 80, echo)
	data := randomBytes(10, 8<<20)
	if got := exchange(t, a.mustDial(t, netip.AddrPortFrom(b.addr4, 80)), data); !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back, want the %d that were sent", len(got), len(data))
	}
}

func TestServerSpeaksFirstEncrypted(t *testing.T) {
	_, a, b := relayPair(t, Rule{})
	b.serve(t, b.h4, 80, func(c *gonet.TCPConn) { send(t, c, []byte("hello")) })
	c := a.mustDial(t, netip.AddrPortFrom(b.addr4, 80))
	hurry(c)
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
}

// Not one byte of the program reaches a peer that does not encrypt, and the program is
// refused.
func TestRequireRefusesPlainPeer(t *testing.T) {
	l := newLAN(t)
	a, b := l.addHost(t), l.addHost(t)
	out, _ := withRule(Rule{Policy: Require})
	a.startRelay(t, Options{Outbound: out})
	at := b.serve(t, b.addr4, 80, echo)
	l.onWire(func(packet []byte) bool {
		if _, dst, seg, ok := parseTCP(packet); ok && dst == at && len(header.TCP(seg).Payload()) > 0 {
			t.Error("a byte is on the wire")
		}
		return true
	})
	if _, err := a.dial(t, at); !isRefused(err) {
		t.Errorf("dial: %v, want refused", err)
	}
	waitFor(t, "it is counted", func() bool { return a.relay.Counters().PlainRefused == 1 })
	noConnsLeft(t, a)
	if c := a.onlyConn(t); c.Encrypted || c.Reason != tcpcrypt.ReasonNoENO || c.State != Closed {
		t.Errorf("table says %+v", c)
	}
}

func TestRequireInboundRefusesPlainPeer(t *testing.T) {
	l := newLAN(t)
	a, b := l.addHost(t), l.addHost(t)
	_, in := withRule(Rule{Policy: Require})
	b.startRelay(t, Options{Inbound: in}, 80)
	b.serve(t, b.h4, 80, func(*gonet.TCPConn) { t.Error("the service has a connection") })
	l.onWire(func(packet []byte) bool {
		if src, _, seg, ok := parseTCP(packet); ok && src.Port() == 80 && header.TCP(seg).Flags().Contains(header.TCPFlagSyn) {
			t.Error("the SYN was answered with SYN")
		}
		return true
	})
	if _, err := a.dial(t, netip.AddrPortFrom(b.addr4, 80)); !isRefused(err) {
		t.Errorf("dial: %v, want refused", err)
	}
	waitFor(t, "it is counted", func() bool { return b.relay.Counters().PlainRefused == 1 })
	noConnsLeft(t, b)
	if c := b.onlyConn(t); c.Encrypted || c.Reason != tcpcrypt.ReasonNoENO || c.State != Closed {
		t.Errorf("table says %+v", c)
	}
}

// A remote whose SYN had ENO and whose ACK has not is only found out then.
func TestRequireInboundResetsStrippedPeer(t *testing.T) {
	l, a, b := relayPair(t, Rule{Policy: Require})
	b.serve(t, b.h4, 80, func(*gonet.TCPConn) { t.Error("the service has a connection") })
	l.onWire(func(packet []byte) bool {
		_, dst, seg, ok := parseTCP(packet)
		h := header.TCP(seg)
		if ok && dst.Port() == 80 && !h.Flags().Contains(header.TCPFlagSyn) {
			o := h.Options()
			if i := bytes.Index(o, []byte{tcpcrypt.OptionKind, 2}); i >= 0 {
				o[i], o[i+1] = 1, 1 // NOPs
			}
		}
		return true
	})
	c, err := a.dial(t, netip.AddrPortFrom(b.addr4, 80))
	if err == nil {
		defer func() { _ = c.Close() }()
		t.Error("the client is connected")
	}
	waitFor(t, "it is counted", func() bool { return b.relay.Counters().PlainRefused == 1 })
	noConnsLeft(t, a, b)
	if c := b.onlyConn(t); c.Encrypted || c.Reason != tcpcrypt.ReasonStripped || c.State != Closed {
		t.Errorf("table says %+v", c)
	}
}

// A byte changed on the way ends in a reset at both programs, never in wrong bytes or a
// clean end.
func TestTamperedRecordResetsBothEnds(t *testing.T) {
	l, a, b := relayPair(t, Rule{})
	ends := make(chan error, 1)
	b.serve(t, b.h4, 80, func(c *gonet.TCPConn) {
		hurry(c)
		_, err := io.ReadAll(c)
		ends <- err
	})
	c := a.mustDial(t, netip.AddrPortFrom(b.addr4, 80))
	hurry(c)
	waitFor(t, "keys are there", func() bool { return len(b.onlyConn(t).SessionID) == 33 && len(a.onlyConn(t).SessionID) == 33 })
	var done atomic.Bool
	l.onWire(func(packet []byte) bool {
		_, dst, seg, ok := parseTCP(packet)
		if p := header.TCP(seg).Payload(); ok && dst.Port() == 80 && len(p) > 20 && !done.Swap(true) {
			p[len(p)-1] ^= 1
		}
		return true
	})
	if _, err := c.Write([]byte("something")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("client read %d bytes and %v, want a reset", n, err)
	}
	if err := <-ends; !isReset(err) {
		t.Errorf("server: %v, want a reset", err)
	}
	noConnsLeft(t, a, b)
}

// A FIN in place of the end that encryption proves is a truncation.
func TestTruncatedStreamResetsProgram(t *testing.T) {
	l, a, b := relayPair(t, Rule{})
	ends := make(chan error, 1)
	b.serve(t, b.h4, 80, func(c *gonet.TCPConn) {
		hurry(c)
		_, err := io.ReadAll(c)
		ends <- err
	})
	c := a.mustDial(t, netip.AddrPortFrom(b.addr4, 80))
	waitFor(t, "keys are there", func() bool { return len(b.onlyConn(t).SessionID) == 33 })
	// The record with data becomes a FIN with none.
	l.onWire(func(packet []byte) bool {
		_, dst, seg, ok := parseTCP(packet)
		h := header.TCP(seg)
		if ok && dst.Port() == 80 && len(h.Payload()) > 0 {
			h.SetFlags(uint8(header.TCPFlagFin | header.TCPFlagAck))
			ip := header.IPv4(packet)
			ip.SetTotalLength(ip.TotalLength() - uint16(len(h.Payload())))
			ip.SetChecksum(0)
			ip.SetChecksum(^ip.CalculateChecksum())
		}
		return true
	})
	if _, err := c.Write([]byte("something")); err != nil {
		t.Fatal(err)
	}
	if err := <-ends; !isReset(err) {
		t.Errorf("server: %v, want a reset", err)
	}
}
