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
func (h *lanHost) dial(t testing.TB, dst netip.AddrPort) (*gonet.TCPConn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return gonet.DialContextTCP(ctx, h.programs, fullAddress(programNIC, dst), networkProtocol(dst.Addr()))
}

func (h *lanHost) mustDial(t testing.TB, dst netip.AddrPort) *gonet.TCPConn {
	t.Helper()
	c, err := h.dial(t, dst)
	if err != nil {
		t.Fatalf("dial %s: %v", dst, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// serve runs a service of h's on addr; each connection gets its goroutine.
func (h *lanHost) serve(t testing.TB, addr netip.Addr, port uint16, handle func(*gonet.TCPConn)) netip.AddrPort {
	t.Helper()
	at := netip.AddrPortFrom(addr, port)
	l, err := gonet.ListenTCP(h.programs, fullAddress(programNIC, at), networkProtocol(addr))
	if err != nil {
		t.Fatalf("listen on %s: %v", at, err)
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
						c.SetDeadline(time.Unix(1, 0))
					}
				})
				defer c.Close()
				handle(c.(*gonet.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		close(done)
		l.Shutdown()
		l.Close()
		wg.Wait()
	})
	return at
}

// echo returns what it reads, and ends when the other end does.
func echo(c *gonet.TCPConn) { io.Copy(c, c) }

// randomBytes returns n bytes that are the same for the same seed.
func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

func waitFor(t testing.TB, what string, f func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-deadline:
			t.Fatalf("not within 20 s: %s", what)
		case <-tick.C:
		}
	}
}

// exchange sends data over c, closes that direction, and returns all that comes back.
func exchange(t testing.TB, c *gonet.TCPConn, data []byte) []byte {
	t.Helper()
	c.SetDeadline(time.Now().Add(60 * time.Second))
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
		t.Errorf("exchange of %d bytes: %v (%d came back)", len(data), err, len(got))
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
			defer c.Close()
			data := randomBytes(uint64(i), 1+i*997)
			if got := exchange(t, c, data); sha256.Sum256(got) != sha256.Sum256(data) {
				t.Errorf("connection %d: %d bytes came back, want %d", i, len(got), len(data))
			}
		})
	}
	wg.Wait()
}
