package stack

import (
	"bytes"
	"context"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// silence makes the destination swallow what is sent to it.
var silence = netip.MustParseAddrPort("192.0.2.9:80")

// A program that stops repeating its SYN ends the dial, long before netstack would.
func TestDialEndsWithTheProgramsSYNs(t *testing.T) {
	l := newLAN(t)
	a := l.addHost(t)
	a.startRelay(t, Options{timing: timing{firstSYNGap: 1500 * time.Millisecond, synGapSlack: 200 * time.Millisecond}})
	ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond) // one repetition
	defer cancel()
	if _, err := gonet.DialContextTCP(ctx, a.programs, fullAddress(programNIC, silence), networkProtocol(silence.Addr())); err == nil || isRefused(err) {
		t.Errorf("dial: %v, want a time-out", err)
	}
	waitFor(t, "the dial has ended", func() bool { return a.relay.Counters().TimedOut == 1 })
	noConnsLeft(t, a)
	conns := a.relay.Conns(true)
	if len(conns) != 1 || conns[0].State != Closed || conns[0].Encrypted {
		t.Errorf("table says %+v", conns)
	}
}

func TestLimitPassesOpportunisticInClear(t *testing.T) {
	l := newLAN(t)
	a, b := l.addHost(t), l.addHost(t)
	a.startRelay(t, Options{Limits: Limits{Dials: 1}})
	at := b.serve(t, b.addr4, 80, echo)
	a.dialAway(t, silence) // takes the one place, for some seconds
	waitFor(t, "the first dial is pending", func() bool { return len(a.relay.Conns(false)) == 1 })

	c := a.mustDial(t, at)
	data := randomBytes(8, 500_000)
	if got := exchange(t, c, data); !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back, want %d", len(got), len(data))
	}
	var limited []Conn
	for _, conn := range a.relay.Conns(true) {
		if conn.Remote == at {
			limited = append(limited, conn)
		}
	}
	// Of a connection that only passes, packets are counted: what is sent again counts again.
	if len(limited) != 1 || limited[0].Reason != reasonLimit || limited[0].Encrypted || limited[0].BytesSent < uint64(len(data)) {
		t.Errorf("table says %+v", limited)
	}
	if got := a.relay.Counters(); got.Limited != 1 || got.Dropped != 0 {
		t.Errorf("counters %+v, want one limited", got)
	}
}

func TestLimitDropsRequire(t *testing.T) {
	l := newLAN(t)
	a, b := l.addHost(t), l.addHost(t)
	a.startRelay(t, Options{
		Limits:   Limits{Dials: 1},
		Outbound: func(_, _ netip.AddrPort) Rule { return Rule{Policy: Require} },
	})
	at := b.serve(t, b.addr4, 80, echo)
	a.dialAway(t, silence)
	waitFor(t, "the first dial is pending", func() bool { return len(a.relay.Conns(false)) == 1 })
	l.onWire(func(packet []byte) bool {
		if _, dst, _, ok := parseTCP(packet); ok && dst == at {
			t.Error("a packet of a require connection beyond the limit is on the wire")
		}
		return true
	})
	a.dialAway(t, at)
	waitFor(t, "its SYN is dropped", func() bool { return a.relay.Counters().Dropped > 0 })
}

func TestLimitPerDestination(t *testing.T) {
	l := newLAN(t)
	a, b := l.addHost(t), l.addHost(t)
	a.startRelay(t, Options{Limits: Limits{DialsPerDst: 1}})
	at := b.serve(t, b.addr4, 80, echo)
	a.dialAway(t, silence)
	waitFor(t, "the first dial is pending", func() bool { return len(a.relay.Conns(false)) == 1 })
	a.dialAway(t, silence)
	waitFor(t, "the second one passes in clear", func() bool { return a.relay.Counters().Limited > 0 })
	c := a.mustDial(t, at) // another destination
	if got := exchange(t, c, []byte("x")); string(got) != "x" {
		t.Errorf("%q came back", got)
	}
	if got := a.relay.Counters().Limited; got != 1 {
		t.Errorf("%d limited, want 1", got)
	}
}

// Connections that are older than the relay survive its start, new ones with the same
// programs do not go past it.
func TestExistingConnectionSurvivesStart(t *testing.T) {
	l := newLAN(t)
	a, b := l.addHost(t), l.addHost(t)
	at := b.serve(t, b.addr4, 80, echo)
	c := a.mustDial(t, at)
	ping := func(c *gonet.TCPConn) error {
		hurry(c)
		if _, err := c.Write([]byte("ping")); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 10))
		return err
	}
	if err := ping(c); err != nil {
		t.Fatal(err)
	}
	src, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	a.startRelay(t, Options{Existing: []Flow{{Src: src, Dst: at}}})
	if err := ping(c); err != nil {
		t.Errorf("after the start: %v", err)
	}
	data := randomBytes(9, 300_000)
	if got := exchange(t, c, data); !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back, want %d", len(got), len(data))
	}
	if got := a.relay.Conns(true); len(got) != 0 {
		t.Errorf("the relay has %+v, want nothing", got)
	}
	if err := ping(a.mustDial(t, at)); err != nil {
		t.Errorf("new connection: %v", err)
	}
	if got := a.relay.Conns(false); len(got) != 1 {
		t.Errorf("the relay has %+v, want the new connection", got)
	}
}

func TestUnknownAndRequireExistingAreReset(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flows func(src, dst netip.AddrPort) []Flow
	}{
		{"unknown", func(_, _ netip.AddrPort) []Flow { return nil }},
		{"require", func(src, dst netip.AddrPort) []Flow { return []Flow{{Src: src, Dst: dst, Policy: Require}} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLAN(t)
			a, b := l.addHost(t), l.addHost(t)
			at := b.serve(t, b.addr4, 80, echo)
			c := a.mustDial(t, at)
			src, err := netip.ParseAddrPort(c.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			a.startRelay(t, Options{Existing: tt.flows(src, at)})
			l.onWire(func(packet []byte) bool {
				t.Error("a packet is on the wire")
				return true
			})
			hurry(c)
			if _, err := c.Write([]byte("ping")); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); !isReset(err) {
				t.Errorf("read: %v, want a reset", err)
			}
			l.onWire(nil)
		})
	}
}

// Forged SYNs do not keep honest ones out.
func TestForgedSYNsAreEvicted(t *testing.T) {
	l := newLAN(t)
	a, b := l.addHost(t), l.addHost(t)
	b.startRelay(t, Options{Inbound: anyInbound, Limits: Limits{HalfOpen: 4}}, 80)
	b.serve(t, b.h4, 80, echo)
	for i := range 8 {
		forged := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 1000)
		deliver(b.tunLink, segment(forged, netip.AddrPortFrom(b.s4, 80), header.TCPFlagSyn))
		waitFor(t, "it is answered or dropped", func() bool {
			return len(b.relay.Conns(false))+int(b.relay.Counters().Dropped) > i
		})
	}
	if got := b.relay.Counters().Dropped; got != 4 {
		t.Errorf("%d of 8 forged SYNs have gone, want all but the limit of 4", got)
	}
	if got := exchange(t, a.mustDial(t, netip.AddrPortFrom(b.addr4, 80)), []byte("x")); string(got) != "x" {
		t.Errorf("%q came back", got)
	}
}

// segment is a TCP segment without data in an IPv4 packet.
func segment(src, dst netip.AddrPort, flags header.TCPFlags) []byte {
	b := make([]byte, header.IPv4MinimumSize+header.TCPMinimumSize)
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(b)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
		SrcAddr: fromAddr(src.Addr()), DstAddr: fromAddr(dst.Addr()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	header.TCP(b[header.IPv4MinimumSize:]).Encode(&header.TCPFields{
		SrcPort: src.Port(), DstPort: dst.Port(), Flags: flags, DataOffset: header.TCPMinimumSize,
	})
	return b
}

func TestFlowEnds(t *testing.T) {
	src, dst := netip.MustParseAddrPort("203.0.113.1:4000"), netip.MustParseAddrPort("203.0.113.2:80")
	for _, tt := range []struct {
		name string
		then header.TCPFlags
		pass bool // that segment itself
		keep bool // and what comes after
	}{
		{"data", header.TCPFlagAck | header.TCPFlagPsh, true, true},
		{"FIN, since acknowledgements follow", header.TCPFlagAck | header.TCPFlagFin, true, true},
		{"RST", header.TCPFlagRst, true, false},
		{"a new SYN", header.TCPFlagSyn, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var ft flowTable
			ft.init(10, []Flow{{Src: src, Dst: dst}})
			defer ft.close()
			if got := ft.bypass(segment(src, dst, tt.then)); got != tt.pass {
				t.Errorf("bypass(%v) = %v, want %v", tt.then, got, tt.pass)
			}
			if got := ft.bypass(segment(src, dst, header.TCPFlagAck)); got != tt.keep {
				t.Errorf("afterwards bypass(ACK) = %v, want %v", got, tt.keep)
			}
		})
	}
}
