package socket

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/tcpcrypt/tcpcrypt/stack"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
	"github.com/tcpcrypt/tcpcrypt/tun"
)

func TestRequireRefusesToDialInClear(t *testing.T) {
	a, b := pair(t, tun.PipeOptions{})
	mustListen(t, b, netip.AddrPortFrom(b4, port), bypass)
	c, err := a.Dial(ctxOf(t), netip.AddrPortFrom(b4, port), require)
	var plain *NotEncryptedError
	if c != nil || !errors.As(err, &plain) || plain.Reason != tcpcrypt.ReasonNoENO {
		t.Fatalf("Dial = %v, %v, want a NotEncryptedError with reason no-eno", c, err)
	}
}

func TestRequireNeverAcceptsInClear(t *testing.T) {
	a, b := pair(t, tun.PipeOptions{})
	l := mustListen(t, b, netip.AddrPortFrom(b4, port), require)
	c, err := a.Dial(ctxOf(t), netip.AddrPortFrom(b4, port), bypass)
	if err == nil {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err = c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read = %v, want a reset", err)
		}
	}
	// The next, which encrypts, is the first that Accept returns.
	good := make(chan error, 1)
	go func() {
		_, err := a.Dial(ctxOf(t), netip.AddrPortFrom(b4, port), ConnOptions{})
		good <- err
	}()
	got, err := l.AcceptConn()
	if err != nil {
		t.Fatal(err)
	}
	if !security(t, got).Encrypted {
		t.Error("a connection in clear was returned")
	}
	if err := <-good; err != nil {
		t.Error(err)
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	a, _ := pair(t, tun.PipeOptions{AToB: func([]byte) [][]byte { return nil }})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err := a.Dial(ctx, netip.AddrPortFrom(b4, port), ConnOptions{Policy: stack.Opportunistic})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial = %v, want context.DeadlineExceeded", err)
	}
}

func TestSimultaneousOpen(t *testing.T) {
	a, b := pair(t, tun.PipeOptions{})
	pa, pb := netip.AddrPortFrom(a4, 1001), netip.AddrPortFrom(b4, 1002)
	type result struct {
		c   *Conn
		err error
	}
	other := make(chan result, 1)
	// Each dial begins when the other's SYN may already be on its way; one that comes to
	// a port where nobody dials yet is reset, so they go on until they meet.
	dial := func(n *Net, from, to netip.AddrPort, passive bool) (*Conn, error) {
		for {
			c, err := n.Dial(ctxOf(t), to, ConnOptions{
				Policy: stack.Require, Local: from, Crypto: tcpcrypt.Options{PassiveRole: passive},
			})
			if err == nil || t.Context().Err() != nil {
				return c, err
			}
		}
	}
	go func() {
		c, err := dial(b, pb, pa, true)
		other <- result{c, err}
	}()
	ca, err := dial(a, pa, pb, false)
	if err != nil {
		t.Fatal(err)
	}
	r := <-other
	if r.err != nil {
		t.Fatal(r.err)
	}
	sa, sb := security(t, ca), security(t, r.c)
	if sa.SessionID != sb.SessionID || sa.Role != tcpcrypt.RoleA || sb.Role != tcpcrypt.RoleB {
		t.Errorf("%+v and %+v", sa, sb)
	}
}
