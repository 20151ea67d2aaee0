package socket

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tcpcrypt/tcpcrypt/stack"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
	"github.com/tcpcrypt/tcpcrypt/tun"
)

func cached(t *testing.T) (a, b *Net) {
	t.Helper()
	cache := tcpcrypt.NewCache(tcpcrypt.CacheOptions{})
	t.Cleanup(cache.Close)
	return pairWith(t, Options{Cache: cache}, tun.PipeOptions{})
}

// resumes joins a and b and says whether both found a session to resume.
func resumes(t *testing.T, a, b *Net, oa, ob ConnOptions) (ca *Conn, resumed bool) {
	t.Helper()
	ca, cb := join(t, a, b, oa, ob)
	sa, sb := security(t, ca), security(t, cb)
	if sa.SessionID != sb.SessionID || sa.Resumed != sb.Resumed || !sa.Encrypted {
		t.Fatalf("%+v and %+v", sa, sb)
	}
	return ca, sa.Resumed
}

func TestResumptionOptions(t *testing.T) {
	no, keep := ConnOptions{NoResume: true}, ConnOptions{NoKeep: true}
	for _, tt := range []struct {
		name           string
		a1, b1, a2, b2 ConnOptions
		want           bool
	}{
		{"both want", ConnOptions{}, ConnOptions{}, ConnOptions{}, ConnOptions{}, true},
		{"the dialler does not offer", ConnOptions{}, ConnOptions{}, no, ConnOptions{}, false},
		{"the listener does not accept", ConnOptions{}, ConnOptions{}, ConnOptions{}, no, false},
		{"nothing was kept", keep, keep, ConnOptions{}, ConnOptions{}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := cached(t)
			if _, resumed := resumes(t, a, b, tt.a1, tt.b1); resumed {
				t.Fatal("resumed out of nothing")
			}
			if _, resumed := resumes(t, a, b, tt.a2, tt.b2); resumed != tt.want {
				t.Errorf("resumed: %v, want %v", resumed, tt.want)
			}
		})
	}
}

func TestForget(t *testing.T) {
	a, b := cached(t)
	c, _ := resumes(t, a, b, ConnOptions{}, ConnOptions{})
	if !c.Forget() {
		t.Error("there was nothing to forget")
	}
	if c.Forget() {
		t.Error("forgotten twice")
	}
	if _, resumed := resumes(t, a, b, ConnOptions{}, ConnOptions{}); resumed {
		t.Error("resumed what was forgotten")
	}
}

func TestRekey(t *testing.T) {
	a, b := pair(t, tun.PipeOptions{})
	ca, cb := join(t, a, b, ConnOptions{}, ConnOptions{})
	for want := uint64(1); want <= 3; want++ {
		if err := ca.Rekey(); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, ca, "hello")
		mustRead(t, cb, "hello")
		mustWrite(t, cb, "back") // the answer is in it, or before it
		mustRead(t, ca, "back")
		if sa, sb := security(t, ca), security(t, cb); sa.GenerationSent != want || sb.GenerationReceived != want ||
			sa.GenerationReceived != sb.GenerationSent {
			t.Fatalf("after %d rekeyings %+v and %+v", want, sa, sb)
		}
	}
	if err := ca.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ca.Rekey(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Rekey after Close = %v", err)
	}
	plain, _ := join(t, a, b, bypass, bypass)
	if err := plain.Rekey(); !errors.Is(err, tcp.ErrNotEncrypted) {
		t.Errorf("Rekey in clear = %v", err)
	}
}

func TestListenOnAllAddresses(t *testing.T) {
	for _, tt := range []struct {
		on, dial string
		ok       bool
	}{
		{"0.0.0.0", "192.0.2.2", true}, {"0.0.0.0", "2001:db8::2", false},
		{"::", "2001:db8::2", true}, {"::", "192.0.2.2", true}, {"", "192.0.2.2", true},
		{"2001:db8::2", "2001:db8::2", true}, {"192.0.2.2", "2001:db8::2", false},
	} {
		t.Run(tt.on+" "+tt.dial, func(t *testing.T) {
			a, b := pair(t, tun.PipeOptions{})
			var on netip.Addr
			if tt.on != "" {
				on = netip.MustParseAddr(tt.on)
			}
			l := mustListen(t, b, netip.AddrPortFrom(on, 0), require)
			to := netip.AddrPortFrom(netip.MustParseAddr(tt.dial), uint16(l.Addr().(*net.TCPAddr).Port))
			accepted := make(chan *Conn, 1)
			go func() {
				c, _ := l.AcceptConn() // fails at the end, if nothing came
				accepted <- c
			}()
			c, err := a.Dial(ctxOf(t), to, require)
			if (err == nil) != tt.ok {
				t.Fatalf("Dial = %v, want success: %v", err, tt.ok)
			}
			if !tt.ok {
				_ = l.Close()
				<-accepted
				return
			}
			s := <-accepted
			if s.LocalAddr().String() != to.String() || s.RemoteAddr().String() != c.LocalAddr().String() || c.RemoteAddr().String() != to.String() {
				t.Errorf("%v - %v, and %v - %v", c.LocalAddr(), c.RemoteAddr(), s.LocalAddr(), s.RemoteAddr())
			}
		})
	}
}

func TestOneListenerAPort(t *testing.T) {
	_, b := pair(t, tun.PipeOptions{})
	on := netip.AddrPortFrom(b4, port)
	l := mustListen(t, b, on, ConnOptions{})
	for _, again := range []netip.Addr{b4, netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if _, err := b.Listen(netip.AddrPortFrom(again, port), ConnOptions{}); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("a second Listen, on %v: %v, want EADDRINUSE", again, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustListen(t, b, on, ConnOptions{})
}

// TestCookies is a listener that answers every SYN with a cookie, as under a flood: there
// is no negotiation then.
func TestCookies(t *testing.T) {
	for _, tt := range []struct {
		policy stack.Policy
		reason tcpcrypt.Reason
	}{{stack.Opportunistic, tcpcrypt.ReasonLimit}, {stack.Bypass, tcpcrypt.ReasonPolicy}, {stack.Require, ""}} {
		t.Run(tt.policy.String(), func(t *testing.T) {
			a, b := pair(t, tun.PipeOptions{})
			cookies := tcpip.TCPAlwaysUseSynCookies(true)
			if err := b.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &cookies); err != nil {
				t.Fatal(err)
			}
			if tt.reason != "" {
				ca, cb := join(t, a, b, ConnOptions{}, ConnOptions{Policy: tt.policy})
				mustWrite(t, ca, "hello")
				mustRead(t, cb, "hello")
				if got := security(t, cb); got.Encrypted || got.Reason != tt.reason {
					t.Errorf("%+v, want reason %q", got, tt.reason)
				}
				return
			}
			l := mustListen(t, b, netip.AddrPortFrom(b4, port), require)
			c, err := a.Dial(ctxOf(t), netip.AddrPortFrom(b4, port), ConnOptions{})
			if err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			if err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%v, want a reset", err)
			}
			if err := l.SetDeadline(time.Now()); err != nil {
				t.Fatal(err)
			}
			if c, err := l.AcceptConn(); err == nil {
				t.Errorf("accepted %v", c.RemoteAddr())
			}
		})
	}
}

func TestMTU(t *testing.T) {
	var largest atomic.Int64
	a, b := pairWith(t, Options{MTU: 900}, tun.PipeOptions{AToB: func(packet []byte) [][]byte {
		largest.Store(max(largest.Load(), int64(len(packet))))
		return [][]byte{packet}
	}})
	ca, cb := join(t, a, b, bypass, bypass)
	mustWrite(t, ca, string(make([]byte, 10_000)))
	mustRead(t, cb, string(make([]byte, 10_000)))
	// Room for the largest options is always left.
	if got := largest.Load(); got > 900 || got < 900-header.TCPOptionsMaximumSize {
		t.Errorf("the largest packet has %d bytes, want 900 at most, and little less", got)
	}
}

func TestCloseReadEndsRead(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			a, b := pair(t, tun.PipeOptions{})
			ca, cb := join(t, a, b, m.a, m.b)
			security(t, cb)
			done := make(chan error, 1)
			go func() {
				_, err := ca.Read(make([]byte, 1))
				done <- err
			}()
			if err := ca.CloseRead(); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != io.EOF { //nolint:errorlint // EOF itself is what io.Reader wants
				t.Errorf("Read = %v, want io.EOF", err)
			}
			mustWrite(t, ca, "still writing")
			mustRead(t, cb, "still writing")
		})
	}
}

// TestNetClose ends everything that waits on a Net.
func TestNetClose(t *testing.T) {
	a, b := pair(t, tun.PipeOptions{AToB: func(packet []byte) [][]byte {
		if seg := header.TCP(header.IPv4(packet).Payload()); seg.DestinationPort() == 99 {
			return nil
		}
		return [][]byte{packet}
	}})
	ca, _ := join(t, a, b, ConnOptions{}, ConnOptions{})
	l := mustListen(t, a, netip.AddrPortFrom(a4, port), ConnOptions{})
	errs := make(chan error, 3)
	go func() { _, err := ca.Read(make([]byte, 1)); errs <- err }()
	go func() { _, err := l.Accept(); errs <- err }()
	go func() {
		_, err := a.Dial(ctxOf(t), netip.AddrPortFrom(b4, 99), ConnOptions{})
		errs <- err
	}()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := <-errs; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v, want net.ErrClosed", err)
		}
	}
	if _, err := a.Dial(ctxOf(t), netip.AddrPortFrom(b4, port), ConnOptions{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Dial = %v", err)
	}
	if _, err := a.Listen(netip.AddrPortFrom(a4, 81), ConnOptions{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Listen = %v", err)
	}
}

func TestCloseUnblocks(t *testing.T) {
	a, b := pair(t, tun.PipeOptions{})
	ca, _ := join(t, a, b, ConnOptions{}, ConnOptions{})
	l := mustListen(t, a, netip.AddrPortFrom(a4, port), ConnOptions{})
	errs := make(chan error, 3)
	go func() { _, err := ca.Read(make([]byte, 1)); errs <- err }()
	go func() { _, err := ca.Write(make([]byte, 64<<20)); errs <- err }()
	go func() { _, err := l.Accept(); errs <- err }()
	for _, c := range []io.Closer{ca, l} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second Close = %v", err)
		}
	}
	for range 3 {
		if err := <-errs; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v, want net.ErrClosed", err)
		}
	}
}

// TestHalfDeadline: a deadline that was moved does not come at its old time.
func TestHalfDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := half{wake: make(chan struct{}, 1)}
		h.setDeadline(time.Now().Add(time.Second))
		h.setDeadline(time.Now().Add(time.Minute))
		time.Sleep(59 * time.Second)
		if h.expired() {
			t.Error("expired at the old time")
		}
		time.Sleep(2 * time.Second)
		if !h.expired() {
			t.Error("not expired")
		}
		h.setDeadline(time.Time{})
		if h.expired() {
			t.Error("expired without a deadline")
		}
	})
}
