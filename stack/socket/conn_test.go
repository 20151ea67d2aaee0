package socket

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/tcpcrypt/tcpcrypt/stack"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
	"github.com/tcpcrypt/tcpcrypt/tun"
)

var (
	bypass  = ConnOptions{Policy: stack.Bypass}
	require = ConnOptions{Policy: stack.Require}
)

// modes are the ways in which a connection may be protected.
var modes = []struct {
	name  string
	a, b  ConnOptions
	plain tcpcrypt.Reason // empty: encrypted
}{
	{"encrypted", ConnOptions{}, ConnOptions{}, ""},
	{"require", require, require, ""},
	{"plain by the listener", ConnOptions{}, bypass, tcpcrypt.ReasonNoENO},
	{"plain by the dialler", bypass, ConnOptions{}, tcpcrypt.ReasonNoENO},
	{"bypass", bypass, bypass, tcpcrypt.ReasonPolicy},
}

// TestNetConn is what package net asks of every net.Conn.
func TestNetConn(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				a, b := pair(t, tun.PipeOptions{})
				ca, cb := join(t, a, b, m.a, m.b)
				for _, c := range []*Conn{ca, cb} {
					if err := c.SetDeadline(time.Time{}); err != nil {
						return nil, nil, nil, err
					}
				}
				return ca, cb, func() { _, _ = a.Close(), b.Close() }, nil
			})
		})
	}
}

func TestBothEndsAgree(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			a, b := pair(t, tun.PipeOptions{})
			ca, cb := join(t, a, b, m.a, m.b)
			mustWrite(t, ca, "hello")
			mustRead(t, cb, "hello")
			mustWrite(t, cb, "and back")
			mustRead(t, ca, "and back")
			sa, sb := security(t, ca), security(t, cb)
			if sa.Encrypted != (m.plain == "") || sb.Encrypted != sa.Encrypted {
				t.Fatalf("encrypted: %v and %v, want %v", sa.Encrypted, sb.Encrypted, m.plain == "")
			}
			if !sa.Encrypted {
				want := m.plain
				if m.a.Policy == stack.Bypass {
					want = tcpcrypt.ReasonPolicy
				}
				if sa.Reason != want || sb.Reason == "" || sa.SessionID != (tcpcrypt.SessionID{}) {
					t.Errorf("%+v and %+v, want reason %q", sa, sb, want)
				}
				return
			}
			if sa.SessionID != sb.SessionID || sa.SessionID == (tcpcrypt.SessionID{}) {
				t.Errorf("session IDs %v and %v, want the same", sa.SessionID, sb.SessionID)
			}
			if sa.Role != tcpcrypt.RoleA || sb.Role != tcpcrypt.RoleB {
				t.Errorf("roles %v and %v, want A and B", sa.Role, sb.Role)
			}
			if sa.TEP != sb.TEP || sa.AEAD != sb.AEAD || sa.TEP == 0 || sa.AEAD == 0 || sa.Reason != "" {
				t.Errorf("%+v and %+v", sa, sb)
			}
		})
	}
}

func TestHalfClose(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			a, b := pair(t, tun.PipeOptions{})
			ca, cb := join(t, a, b, m.a, m.b)
			mustWrite(t, ca, "question")
			if err := ca.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(cb); string(got) != "question" || err != nil {
				t.Fatalf("ReadAll = %q, %v", got, err)
			}
			if _, err := ca.Write([]byte("more")); !errors.Is(err, syscall.EPIPE) {
				t.Errorf("Write after CloseWrite = %v, want EPIPE", err)
			}
			mustWrite(t, cb, "answer")
			if err := cb.Close(); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				got, err := io.ReadAll(ca)
				if err != nil || (string(got) != "answer" && string(got) != "") {
					t.Fatalf("ReadAll = %q, %v", got, err)
				}
			}
		})
	}
}

func TestResetIsNeverEndOfFile(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			a, b := pair(t, tun.PipeOptions{})
			ca, cb := join(t, a, b, m.a, m.b)
			security(t, cb)
			if err := cb.SetLinger(0); err != nil {
				t.Fatal(err)
			}
			if err := cb.Close(); err != nil {
				t.Fatal(err)
			}
			// Again and again, also after a Write has been told.
			for i := range 4 {
				_, err := ca.Read(make([]byte, 1))
				var op *net.OpError
				if !errors.Is(err, syscall.ECONNRESET) || !errors.As(err, &op) || op.Op != "read" {
					t.Fatalf("Read %d = %v, want ECONNRESET", i, err)
				}
				if _, err := ca.Write([]byte("x")); err == nil || errors.Is(err, net.ErrClosed) {
					t.Fatalf("Write = %v, want an error of TCP's", err)
				}
			}
		})
	}
}

func TestRefused(t *testing.T) {
	a, _ := pair(t, tun.PipeOptions{})
	_, err := a.DialContext(ctxOf(t), "tcp", "192.0.2.2:81")
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Dial = %v, want ECONNREFUSED", err)
	}
}

func TestDeadlineIsATimeout(t *testing.T) {
	a, b := pair(t, tun.PipeOptions{})
	ca, _ := join(t, a, b, ConnOptions{}, ConnOptions{})
	if err := ca.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, err := ca.Read(make([]byte, 1))
	var ne net.Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("Read = %v, want a timeout", err)
	}
}
