package socket

import (
	"context"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/tcpcrypt/tcpcrypt/tun"
)

var (
	a4 = netip.MustParseAddr("192.0.2.1")
	b4 = netip.MustParseAddr("192.0.2.2")
	a6 = netip.MustParseAddr("2001:db8::1")
	b6 = netip.MustParseAddr("2001:db8::2")
)

const port = 80

// patience is how long a test waits before it says that something hangs.
const patience = 20 * time.Second

// pair is two Nets joined by a pipe.
func pair(tb testing.TB, pipe tun.PipeOptions) (a, b *Net) {
	tb.Helper()
	return pairWith(tb, Options{}, pipe)
}

// pairWith is pair, with options that both share but for link and addresses.
func pairWith(tb testing.TB, o Options, pipe tun.PipeOptions) (a, b *Net) {
	tb.Helper()
	la, lb := tun.Pipe(1500, pipe)
	make1 := func(link *tun.PipeEnd, addrs ...netip.Addr) *Net {
		o := o
		o.Link, o.Addrs = link, addrs
		n, err := New(o)
		if err != nil {
			tb.Fatalf("New: %v", err)
		}
		tb.Cleanup(func() {
			if err := n.Close(); err != nil {
				tb.Errorf("Close: %v", err)
			}
		})
		return n
	}
	return make1(la, a4, a6), make1(lb, b4, b6)
}

func ctxOf(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	tb.Cleanup(cancel)
	return ctx
}

func mustListen(tb testing.TB, n *Net, on netip.AddrPort, o ConnOptions) *Listener {
	tb.Helper()
	l, err := n.Listen(on, o)
	if err != nil {
		tb.Fatalf("Listen(%v): %v", on, err)
	}
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() }) // often closed already
	return l
}

// join returns both ends of a connection from a to b.
func join(tb testing.TB, a, b *Net, oa, ob ConnOptions) (ca, cb *Conn) {
	tb.Helper()
	l := mustListen(tb, b, netip.AddrPortFrom(b4, port), ob)
	type result struct {
		c   *Conn
		err error
	}
	accepted := make(chan result, 1)
	go func() {
		c, err := l.AcceptConn()
		accepted <- result{c, err}
	}()
	ca, err := a.Dial(ctxOf(tb), netip.AddrPortFrom(b4, port), oa)
	if err != nil {
		tb.Fatalf("Dial: %v", err)
	}
	r := <-accepted
	if r.err != nil {
		tb.Fatalf("Accept: %v", r.err)
	}
	if err := l.Close(); err != nil {
		tb.Fatal(err)
	}
	for _, c := range []*Conn{ca, r.c} {
		tb.Cleanup(func() { _ = c.Close() }) // often closed already
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			tb.Fatal(err)
		}
	}
	return ca, r.c
}

func security(tb testing.TB, c *Conn) Security {
	tb.Helper()
	s, err := c.Security(ctxOf(tb))
	if err != nil {
		tb.Fatalf("Security: %v", err)
	}
	return s
}

func mustWrite(tb testing.TB, w io.Writer, s string) {
	tb.Helper()
	if n, err := io.WriteString(w, s); n != len(s) || err != nil {
		tb.Fatalf("Write = %d, %v, want %d", n, err, len(s))
	}
}

func mustRead(tb testing.TB, r io.Reader, want string) {
	tb.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(r, b); err != nil || string(b) != want {
		tb.Fatalf("read %q, %v, want %q", b[:n], err, want)
	}
}
