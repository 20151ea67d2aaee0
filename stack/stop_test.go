package stack

import (
	"context"
	"io"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

func TestResetResetsBothLegs(t *testing.T) {
	bothWays(t, func(t *testing.T, client, server *lanHost, listen, dial netip.Addr) {
		t.Helper()
		errs := make(chan error, 1)
		server.serve(t, listen, 80, func(c *gonet.TCPConn) {
			hurry(c)
			send(t, c, []byte("x"))
			_, err := c.Read(make([]byte, 1))
			errs <- err
		})
		c := client.mustDial(t, netip.AddrPortFrom(dial, 80))
		hurry(c)
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		for _, h := range []*lanHost{client, server} {
			if h.relay == nil {
				continue
			}
			if err := h.relay.Reset(t.Context()); err != nil {
				t.Errorf("Reset: %v", err)
			}
			if conns := h.relay.Conns(false); len(conns) != 0 {
				t.Errorf("after Reset there is %+v", conns)
			}
		}
		if _, err := c.Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("client: %v, want a reset", err)
		}
		if err := <-errs; !isReset(err) {
			t.Errorf("server: %v, want a reset", err)
		}
	})
}

// After Reset a SYN stays unanswered, so that the program's next one finds the way
// without us.
func TestResetLeavesNewSYNsUnanswered(t *testing.T) {
	l := newLAN(t)
	a, b := l.addHost(t), l.addHost(t)
	a.startRelay(t, Options{})
	at := b.serve(t, b.addr4, 80, echo)
	a.dialAway(t, silence) // is pending when Reset comes
	waitFor(t, "it is pending", func() bool { return len(a.relay.Conns(false)) == 1 })
	if err := a.relay.Reset(t.Context()); err != nil {
		t.Errorf("Reset: %v", err)
	}
	a.onProgram = func(packet []byte) { t.Error("the program was answered") }
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if c, err := gonet.DialContextTCP(ctx, a.programs, fullAddress(programNIC, at), networkProtocol(at.Addr())); err == nil {
		_ = c.Close()
		t.Error("a connection was made")
	}
}

func TestCloseWhileBusy(t *testing.T) {
	l := newLAN(t)
	a, b := l.addHost(t), l.addHost(t)
	a.startRelay(t, Options{})
	b.startRelay(t, Options{Inbound: anyInbound}, 80)
	b.serve(t, b.h4, 80, echo)
	var wg sync.WaitGroup
	for range 5 {
		c := a.mustDial(t, netip.AddrPortFrom(b.addr4, 80))
		hurry(c)
		wg.Go(func() {
			for { // until reset
				if _, err := c.Write(make([]byte, 10_000)); err != nil {
					return
				}
			}
		})
		wg.Go(func() {
			for {
				if _, err := c.Read(make([]byte, 10_000)); err != nil {
					return
				}
			}
		})
	}
	waitFor(t, "bytes flow", func() bool {
		var n uint64
		for _, c := range a.relay.Conns(false) {
			n += c.BytesReceived
		}
		return n > 1<<20
	})
	for _, h := range []*lanHost{a, b} {
		if err := h.relay.Reset(t.Context()); err != nil {
			t.Errorf("Reset: %v", err)
		}
		// A TUN device has what was written to it; this link forgets it when closed.
		waitFor(t, "the resets are out", func() bool { return h.tunLink.NumQueued() == 0 })
		for range 2 {
			if err := h.relay.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	}
	wg.Wait()
}

// An idle connection has no goroutine.
func TestIdleConnectionsHaveNoGoroutines(t *testing.T) {
	l := newLAN(t)
	a, b := l.addHost(t), l.addHost(t)
	a.startRelay(t, Options{})
	at := b.serve(t, b.addr4, 80, echo)
	const n = 50
	before := 0
	for i := range n + 1 {
		c := a.mustDial(t, at)
		if i > 0 {
			continue
		}
		// With an answer all that it takes is there, the server's goroutines too.
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		before = runtime.NumGoroutine()
	}
	const perServed = 2 // goroutines of the test's own server
	waitFor(t, "only the server's goroutines have come", func() bool {
		return runtime.NumGoroutine() <= before+n*perServed
	})
}
