package stack

import (
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// openPair opens one connection from a to b's echo, and returns it when keys are there.
func openPair(t *testing.T, a, b *lanHost) *gonet.TCPConn {
	t.Helper()
	c := a.mustDial(t, netip.AddrPortFrom(b.addr4, 80))
	hurry(c)
	send(t, c, []byte("x"))
	_ = readByte(c)
	return c
}

func TestConnByTuple(t *testing.T) {
	_, a, b := relayPair(t, Rule{Options: tcpcrypt.Options{ApplicationAware: true}})
	b.serve(t, b.h4, 80, echo)
	c := openPair(t, a, b)
	program, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	dialled, service := netip.AddrPortFrom(b.addr4, 80), netip.AddrPortFrom(b.h4, 80)
	mapped := netip.AddrPortFrom(netip.AddrFrom16(program.Addr().As16()), program.Port())
	out := a.onlyConn(t)
	for _, local := range []netip.AddrPort{program, mapped} {
		if got, ok := a.relay.Conn(local, dialled); !ok || got.ID != out.ID || !got.Encrypted || !got.PeerApplicationAware {
			t.Errorf("outbound by %s: %+v, %v", local, got, ok)
		}
	}
	in := b.onlyConn(t)
	for _, local := range []netip.AddrPort{dialled, service} {
		if got, ok := b.relay.Conn(local, in.Remote); !ok || got.ID != in.ID || !got.PeerApplicationAware {
			t.Errorf("inbound by %s: %+v, %v", local, got, ok)
		}
	}
	for _, no := range [][2]netip.AddrPort{{dialled, program}, {service, netip.AddrPortFrom(in.Remote.Addr(), 1)}, {netip.AddrPortFrom(b.h4, 81), in.Remote}} {
		if got, ok := b.relay.Conn(no[0], no[1]); ok {
			t.Errorf("%s and %s is %+v", no[0], no[1], got)
		}
	}
	_ = c.Close()
	noConnsLeft(t, a, b)
	if _, ok := a.relay.Conn(program, dialled); ok {
		t.Error("a closed connection is found")
	}
}

// Both ends rekey, at once and again and again, under a transfer.
func TestRekeyFromBothEnds(t *testing.T) {
	_, a, b := relayPair(t, Rule{})
	b.serve(t, b.h4, 80, echo)
	c := openPair(t, a, b)
	waitFor(t, "keys are there", func() bool { return len(a.onlyConn(t).SessionID) > 0 && len(b.onlyConn(t).SessionID) > 0 })
	if n := a.relay.Rekey(a.onlyConn(t).ID + 1); n != 0 {
		t.Errorf("rekeyed %d that are not there", n)
	}
	if n := a.relay.Rekey(a.onlyConn(t).ID, a.onlyConn(t).ID); n != 1 {
		t.Errorf("rekeyed %d, want 1", n)
	}
	waitFor(t, "an idle connection is rekeyed by both ends", func() bool {
		ca, cb := a.onlyConn(t), b.onlyConn(t)
		return ca.GenerationSent == 1 && ca.GenerationReceived == 1 && cb.GenerationSent == 1 && cb.GenerationReceived == 1
	})
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			a.relay.Rekey()
			b.relay.Rekey()
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	data := randomBytes(22, 4<<20)
	got := exchange(t, c, data)
	close(stop)
	<-done
	if string(got) != string(data) {
		t.Fatalf("%d bytes came back, want %d", len(got), len(data))
	}
	noConnsLeft(t, a, b)
	ca, cb := a.onlyConn(t), b.onlyConn(t)
	if ca.GenerationSent == 0 || ca.GenerationSent != cb.GenerationReceived || cb.GenerationSent != ca.GenerationReceived {
		t.Errorf("generations %d, %d and %d, %d", ca.GenerationSent, ca.GenerationReceived, cb.GenerationSent, cb.GenerationReceived)
	}
	if n := a.relay.Rekey(); n != 0 {
		t.Errorf("rekeyed %d closed ones", n)
	}
}
