package stack

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// enoOf returns the ENO option of a TCP segment, nil if it has none.
func enoOf(h header.TCP) []byte {
	for o := h.Options(); len(o) > 0; {
		switch {
		case o[0] == header.TCPOptionEOL:
			return nil
		case o[0] == header.TCPOptionNOP:
			o = o[1:]
		case len(o) < 2 || o[1] < 2 || int(o[1]) > len(o):
			return nil
		case o[0] == tcpcrypt.OptionKind:
			return o[:o[1]]
		default:
			o = o[o[1]:]
		}
	}
	return nil
}

// stripENO makes NOPs of it.
func stripENO(h header.TCP) {
	o := enoOf(h)
	for i := range o {
		o[i] = header.TCPOptionNOP
	}
}

// plainHost adds a host without relay and returns the address of its service.
func plainHost(t *testing.T, l *lan, answer func(*gonet.TCPConn)) netip.AddrPort {
	t.Helper()
	h := l.addHost(t)
	return h.serve(t, h.addr4, 80, answer)
}

// lastConn returns the newest connection of h.
func (h *lanHost) lastConn(t *testing.T) Conn {
	t.Helper()
	conns := h.relay.Conns(true)
	if len(conns) == 0 {
		t.Fatal("no connections")
	}
	return conns[len(conns)-1]
}

// A middlebox that drops SYNs with ENO costs the first two connections their time, and
// none after them, until it is forgotten. Require does not ask.
func TestDestinationThatDropsENOIsRemembered(t *testing.T) {
	l := newLAN(t)
	a := l.addHost(t)
	policy := Opportunistic
	a.startRelay(t, Options{Outbound: func(_, _ netip.AddrPort) Rule { return Rule{Policy: policy} }})
	at := plainHost(t, l, echo)
	asked := make(chan struct{}, 100)
	l.onWire(func(packet []byte) bool {
		_, dst, seg, ok := parseTCP(packet)
		if !ok || dst != at || enoOf(header.TCP(seg)) == nil {
			return true
		}
		asked <- struct{}{}
		return false
	})
	dial := func() {
		t.Helper()
		if got := exchange(t, a.mustDial(t, at), []byte("hello")); string(got) != "hello" {
			t.Fatalf("%q came back", got)
		}
		noConnsLeft(t, a)
		if c := a.lastConn(t); c.Encrypted || c.Reason != tcpcrypt.ReasonFallback {
			t.Fatalf("table says %+v", c)
		}
	}
	dial()
	if r := a.relay.Remembered(); len(r) != 0 {
		t.Fatalf("remembered after one: %+v", r)
	}
	dial()
	r := a.relay.Remembered()
	if len(r) != 1 || r[0].Peer != at || r[0].Reason != tcpcrypt.ReasonFallback || r[0].Until.Sub(r[0].Since) != rememberFor {
		t.Fatalf("remembered after two: %+v", r)
	}
	if got := len(asked); got != 2*synsWithENO {
		t.Errorf("%d SYNs with ENO, want %d", got, 2*synsWithENO)
	}
	dial()
	if got := len(asked); got != 2*synsWithENO {
		t.Error("a SYN with ENO though it is remembered")
	}

	policy = Require
	a.dialAway(t, at)
	for range 2*synsWithENO + 1 {
		select {
		case <-asked:
		case <-time.After(10 * time.Second):
			t.Fatal("no SYN with ENO under require")
		}
	}
	if n := a.relay.Forget(at.Addr()); n != 1 || len(a.relay.Remembered()) != 0 {
		t.Errorf("forgot %d", n)
	}
}

// A middlebox that takes the option out of all but SYNs leaves us encrypting alone.
func TestDestinationThatIsCutIsRemembered(t *testing.T) {
	for name, answer := range map[string]func(*gonet.TCPConn){
		"answers something else": func(c *gonet.TCPConn) { _ = readByte(c); send(t, c, []byte("HTTP/1.1 400")) },
		"resets":                 func(c *gonet.TCPConn) { _ = readByte(c); reset(t, c) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLAN(t)
			a := l.addHost(t)
			a.startRelay(t, Options{})
			at := plainHost(t, l, answer)
			// The peer's part of ENO, for a host that has none.
			l.onWire(func(packet []byte) bool {
				src, _, seg, ok := parseTCP(packet)
				h := header.TCP(seg)
				if ok && src == at && h.Flags().Contains(header.TCPFlagSyn) && enoOf(h) == nil {
					deliver(a.tunLink, withOption(packet, []byte{tcpcrypt.OptionKind, 4, 1, 0x23}))
					return false
				}
				return true
			})
			for i := range 2 {
				if r := a.relay.Remembered(); len(r) != 0 {
					t.Fatalf("remembered after %d: %+v", i, r)
				}
				c, err := a.dial(t, at)
				if err == nil { // else the reset was there before the program looked
					hurry(c)
					_, err = c.Read(make([]byte, 1))
					_ = c.Close()
				}
				if !isReset(err) {
					t.Fatalf("the program got %v, want a reset", err)
				}
				noConnsLeft(t, a)
			}
			waitFor(t, "it is remembered", func() bool { return len(a.relay.Remembered()) == 1 })
			if r := a.relay.Remembered(); r[0].Reason != tcpcrypt.ReasonStripped {
				t.Errorf("remembered: %+v", r)
			}
			c := a.mustDial(t, at)
			hurry(c)
			send(t, c, []byte("GET /"))
			_ = readByte(c)
			if c := a.lastConn(t); c.Encrypted || c.Reason != tcpcrypt.ReasonFallback {
				t.Errorf("table says %+v", c)
			}
		})
	}
}

// withOption returns a copy of an IPv4 packet with one more TCP option, of 4 bytes.
func withOption(packet, option []byte) []byte {
	ip := header.IPv4(bytes.Clone(packet))
	n := int(ip.HeaderLength())
	h := header.TCP(ip[n:])
	end := n + int(h.DataOffset())
	h.SetDataOffset(h.DataOffset() + uint8(len(option)))
	out := header.IPv4(fmt.Appendf(nil, "%s%s%s", []byte(ip[:end]), option, []byte(ip[end:])))
	out.SetTotalLength(uint16(len(out)))
	out.SetChecksum(0)
	out.SetChecksum(^out.CalculateChecksum())
	return out
}

// A connection that is encrypted shows that ENO gets through.
func TestSuccessBetweenFailuresClears(t *testing.T) {
	l, a, b := relayPair(t, Rule{})
	b.serve(t, b.h4, 80, echo)
	at := netip.AddrPortFrom(b.addr4, 80)
	var drop atomic.Bool
	l.onWire(func(packet []byte) bool {
		_, dst, seg, ok := parseTCP(packet)
		return !ok || dst != at || !drop.Load() || enoOf(header.TCP(seg)) == nil
	})
	for i, lost := range []bool{true, false, true} {
		drop.Store(lost)
		exchange(t, a.mustDial(t, at), []byte("hello"))
		noConnsLeft(t, a, b)
		waitFor(t, "it is logged", func() bool { return a.lastConn(t).Encrypted != lost })
		if r := a.relay.Remembered(); len(r) != 0 {
			t.Fatalf("remembered after %d: %+v", i+1, r)
		}
	}
}
