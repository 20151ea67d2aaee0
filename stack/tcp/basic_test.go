package tcp_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

const port = 80

// ends are the two ends of one connection.
type ends struct {
	p              *tcptest.Pair
	active, server *tcptest.Conn
}

// opts returns the options of a Pair with an extension at each end; nil is none.
func opts(a, b *toy) tcptest.Options {
	var o tcptest.Options
	if a != nil {
		o.A = tcp.NewProtocolWithExtension(a)
	}
	if b != nil {
		o.B = tcp.NewProtocolWithExtension(b)
	}
	return o
}

// connect opens a connection from A to a listener on B and waits for keys at both
// ends.
func connect(tb testing.TB, p *tcptest.Pair) ends {
	tb.Helper()
	l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, port), 10)
	tb.Cleanup(l.Close)
	c := p.NewConn(p.A, tcptest.B4)
	if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, port)); err != nil {
		tb.Fatalf("connect: %v", err)
	}
	s, err := l.Accept()
	if err != nil {
		tb.Fatalf("accept: %v", err)
	}
	if err := c.WaitReady(); err != nil {
		tb.Fatalf("active end: %v", err)
	}
	if err := s.WaitReady(); err != nil {
		tb.Fatalf("passive end: %v", err)
	}
	return ends{p, c, s}
}

func (e ends) close() {
	e.active.Close()
	e.server.Close()
}

// random returns n bytes that are the same in each run.
func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

// send writes b to one end, ends its stream, and reads it at the other.
func send(tb testing.TB, from, to *tcptest.Conn, b []byte) {
	tb.Helper()
	errc := make(chan error, 1)
	go func() {
		_, err := from.Write(b)
		if err == nil {
			err = from.CloseWrite()
		}
		errc <- err
	}()
	got, err := io.ReadAll(to)
	if werr := <-errc; werr != nil {
		tb.Fatalf("write: %v", werr)
	}
	if err != nil {
		tb.Fatalf("read: %v after %d of %d bytes", err, len(got), len(b))
	}
	if sha256.Sum256(got) != sha256.Sum256(b) {
		i := 0
		for i < min(len(got), len(b)) && got[i] == b[i] {
			i++
		}
		tb.Fatalf("got %d bytes, want %d; first difference at %d", len(got), len(b), i)
	}
}

// exchange sends n bytes each way at once.
func (e ends) exchange(tb testing.TB, n int) {
	tb.Helper()
	b := random(n)
	done := make(chan error, 2)
	go func() {
		_, err := e.active.Write(b)
		done <- err
	}()
	go func() {
		_, err := e.server.Write(b)
		done <- err
	}()
	for _, c := range []*tcptest.Conn{e.server, e.active} {
		got := make([]byte, n)
		if _, err := io.ReadFull(c, got); err != nil {
			tb.Fatalf("read: %v", err)
		}
		if !bytes.Equal(got, b) {
			tb.Fatalf("%d bytes differ", n)
		}
	}
	for range 2 {
		if err := <-done; err != nil {
			tb.Fatalf("write: %v", err)
		}
	}
}

// finish ends both streams, half by half, and closes.
func (e ends) finish(tb testing.TB) {
	tb.Helper()
	send(tb, e.active, e.server, []byte("one way"))
	send(tb, e.server, e.active, []byte("and the other"))
	e.close()
}

func TestListenerEncrypts(t *testing.T) {
	for _, offload := range []bool{false, true} {
		t.Run(fmt.Sprintf("offload=%v", offload), func(t *testing.T) {
			o := opts(new(toy), new(toy))
			o.Offload = offload
			p := tcptest.New(t, o)
			e := connect(t, p)
			if !e.active.Secure().Encrypted() || !e.server.Secure().Encrypted() {
				t.Fatal("not encrypted")
			}
			e.exchange(t, 1<<20)
			e.finish(t)
		})
	}
}

func TestForwarderEncrypts(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := p.Forward(ctx, p.B)
	c := p.NewConn(p.A, tcptest.B6)
	if err := c.StartConnect(netip.AddrPortFrom(tcptest.B6, port)); err != nil {
		t.Fatal(err)
	}
	s := <-got
	if s.Err != nil {
		t.Fatal(s.Err)
	}
	if err := errors.Join(c.WaitReady(), s.WaitReady()); err != nil {
		t.Fatal(err)
	}
	if !c.Secure().Encrypted() || !s.Secure().Encrypted() {
		t.Fatal("not encrypted")
	}
	e := ends{p, c, s.Conn}
	e.exchange(t, 1<<20)
	e.finish(t)
}

// TestPlainWhenEitherDoesNot walks the ways to a plain connection.
func TestPlainWhenEitherDoesNot(t *testing.T) {
	for _, tt := range []struct {
		name string
		a, b *toy
	}{
		{"neither has an extension", nil, nil},
		{"active alone", new(toy), nil},
		{"passive alone", nil, new(toy)},
		{"active off", &toy{Off: true}, new(toy)},
		{"passive off", new(toy), &toy{Off: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tcptest.New(t, opts(tt.a, tt.b))
			e := connect(t, p)
			for _, c := range []*tcptest.Conn{e.active, e.server} {
				if s, ok := tcp.AsSecure(c.EP); ok && s.Encrypted() {
					t.Error("encrypted")
				}
			}
			e.exchange(t, 1<<16)
			e.finish(t)
		})
	}
}

// TestNoExtensionIsUpstream: without an extension endpoints are *tcp.Endpoint.
func TestNoExtensionIsUpstream(t *testing.T) {
	p := tcptest.New(t, tcptest.Options{})
	e := connect(t, p)
	for _, c := range []*tcptest.Conn{e.active, e.server} {
		if _, ok := c.EP.(*tcp.Endpoint); !ok {
			t.Errorf("endpoint is a %T", c.EP)
		}
	}
	e.finish(t)
}

// tcpError returns the tcpip.Error in err.
func tcpError(err error) tcpip.Error {
	var e *tcptest.Error
	if errors.As(err, &e) {
		return e.TCP
	}
	return nil
}
