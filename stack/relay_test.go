package stack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

// dial opens a connection from one of h's programs.
func (h *lanHost) dial(tb testing.TB, dst netip.AddrPort) (*gonet.TCPConn, error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	return gonet.DialContextTCP(ctx, h.programs, fullAddress(programNIC, dst), networkProtocol(dst.Addr()))
}

func (h *lanHost) mustDial(tb testing.TB, dst netip.AddrPort) *gonet.TCPConn {
	tb.Helper()
	c, err := h.dial(tb, dst)
	if err != nil {
		tb.Fatalf("dial %s: %v", dst, err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// serve runs a service of h's on addr; each connection gets its goroutine.
func (h *lanHost) serve(tb testing.TB, addr netip.Addr, port uint16, handle func(*gonet.TCPConn)) netip.AddrPort {
	tb.Helper()
	at := netip.AddrPortFrom(addr, port)
	l, err := gonet.ListenTCP(h.programs, fullAddress(programNIC, at), networkProtocol(addr))
	if err != nil {
		tb.Fatalf("listen on %s: %v", at, err)
	}
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				handled := make(chan struct{})
				defer close(handled)
				wg.Go(func() { // what is open at the end of the test is closed
					select {
					case <-handled:
					case <-done:
						_ = c.SetDeadline(time.Unix(1, 0))
					}
				})
				defer func() { _ = c.Close() }()
				handle(c.(*gonet.TCPConn))
			})
		}
	})
	tb.Cleanup(func() {
		close(done)
		l.Shutdown()
		_ = l.Close()
		wg.Wait()
	})
	return at
}

// echo returns what it reads, and ends when the other end does, however it does.
func echo(c *gonet.TCPConn) { _, _ = io.Copy(c, c) }

// send writes b to c, which has to take it.
func send(tb testing.TB, c *gonet.TCPConn, b []byte) {
	tb.Helper()
	if _, err := c.Write(b); err != nil {
		tb.Errorf("write of %d bytes: %v", len(b), err)
	}
}

// sendFIN ends c's direction.
func sendFIN(tb testing.TB, c *gonet.TCPConn) {
	tb.Helper()
	if err := c.CloseWrite(); err != nil {
		tb.Errorf("close for writing: %v", err)
	}
}

// readByte reads one byte from c.
func readByte(c *gonet.TCPConn) error {
	_, err := c.Read(make([]byte, 1))
	return err
}

// hurry lets c's reads and writes fail before the test hangs.
func hurry(c *gonet.TCPConn) { _ = c.SetDeadline(time.Now().Add(60 * time.Second)) }

// dialAway dials in the background a destination that is not meant to answer.
func (h *lanHost) dialAway(tb testing.TB, dst netip.AddrPort) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := gonet.DialContextTCP(ctx, h.programs, fullAddress(programNIC, dst), networkProtocol(dst.Addr())); err == nil {
			_ = c.Close()
		}
	}()
	tb.Cleanup(func() {
		cancel()
		<-done
	})
}

// randomBytes returns n bytes that are the same for the same seed.
func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b) // never fails
	return b
}

func waitFor(tb testing.TB, what string, f func() bool) {
	tb.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-deadline:
			tb.Fatalf("not within 20 s: %s", what)
		case <-tick.C:
		}
	}
}

// exchange sends data over c, closes that direction, and returns all that comes back.
func exchange(tb testing.TB, c *gonet.TCPConn, data []byte) []byte {
	tb.Helper()
	hurry(c)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		if err == nil {
			err = c.CloseWrite()
		}
		sent <- err
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-sent); err != nil {
		tb.Errorf("exchange of %d bytes: %v (%d came back)", len(data), err, len(got))
	}
	return got
}

func TestOutboundPlainToStockPeer(t *testing.T) {
	for _, family := range []string{"ip4", "ip6"} {
		t.Run(family, func(t *testing.T) {
			l := newLAN(t)
			a, b := l.addHost(t), l.addHost(t)
			a.startRelay(t, Options{})
			addr := b.addr4
			if family == "ip6" {
				addr = b.addr6
			}
			from := make(chan net.Addr, 1)
			at := b.serve(t, addr, 80, func(c *gonet.TCPConn) { from <- c.RemoteAddr(); echo(c) })
			c := a.mustDial(t, at)
			data := randomBytes(1, 3<<20)
			if got := exchange(t, c, data); !bytes.Equal(got, data) {
				t.Fatalf("%d bytes came back, want the %d that were sent", len(got), len(data))
			}
			if got, want := (<-from).String(), a.s4.String(); family == "ip4" && !strings.HasPrefix(got, want+":") {
				t.Errorf("the peer saw %s, want %s", got, want)
			}
			waitFor(t, "the connection is closed", func() bool { return len(a.relay.Conns(false)) == 0 })
			conns := a.relay.Conns(true)
			if len(conns) != 1 {
				t.Fatalf("%d connections, want 1: %+v", len(conns), conns)
			}
			got := conns[0]
			if got.State != Closed || got.Encrypted || got.Reason != "no-eno" || got.Remote != at ||
				got.BytesSent != uint64(len(data)) || got.BytesReceived != uint64(len(data)) {
				t.Errorf("table says %+v", got)
			}
		})
	}
}

func TestManyConnections(t *testing.T) {
	l := newLAN(t)
	a, b := l.addHost(t), l.addHost(t)
	a.startRelay(t, Options{})
	at := b.serve(t, b.addr4, 80, echo)
	runMany(t, a, at, 200, 20)
}

func runMany(t *testing.T, a *lanHost, at netip.AddrPort, total, atOnce int) {
	t.Helper()
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range total {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			c, err := a.dial(t, at)
			if err != nil {
				t.Errorf("connection %d: %v", i, err)
				return
			}
			defer func() { _ = c.Close() }()
			data := randomBytes(uint64(i), 1+i*997%60_000)
			if got := exchange(t, c, data); sha256.Sum256(got) != sha256.Sum256(data) {
				t.Errorf("connection %d: %d bytes came back, want %d", i, len(got), len(data))
			}
		})
	}
	wg.Wait()
}
