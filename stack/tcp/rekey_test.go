package tcp_test

import (
	"errors"
	"io"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

func generations(c *tcptest.Conn) [2]uint64 {
	sent, received := c.Secure().Generations()
	return [2]uint64{sent, received}
}

// TestRekeyOnRequest: at once on an idle connection, from either side and from both.
func TestRekeyOnRequest(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	for i, who := range [][]*tcptest.Conn{{e.active}, {e.server}, {e.active, e.server}} {
		for _, c := range who {
			if err := c.Secure().Rekey(); err != nil {
				t.Fatal(err)
			}
		}
		// Both at once are one rekeying, or two if one answered before it was asked to.
		at := uint64(i + 1)
		waitFor(t, e.active.Queue, func() bool {
			a, b := generations(e.active), generations(e.server)
			return a[0] >= at && a[1] == a[0] && b == a
		})
	}
	e.exchange(t, 1000)
	e.finish(t)
}

// TestRekeyRunsAheadWithDataOnly: while the peer has not answered no record without
// data goes out; the next data carries what was asked for.
func TestRekeyRunsAheadWithDataOnly(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	never := func() int { return 0 }
	codecOf(t, e.server).owedHook.Store(&never)
	for range 3 {
		if err := e.active.Secure().Rekey(); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, e.server.Queue, func() bool { return codecOf(t, e.server).remote.Load() == 1 })
	if got := generations(e.active); got != [2]uint64{1, 0} {
		t.Errorf("generations %v, want the first alone", got)
	}
	if _, err := e.active.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if got := generations(e.active); got != [2]uint64{2, 0} {
		t.Errorf("generations %v after data, want the second too", got)
	}
	if _, err := io.ReadFull(e.server, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	codecOf(t, e.server).owedHook.Store(nil)
	tcp.PayOwed(e.server.Secure())
	waitFor(t, e.active.Queue, func() bool { return generations(e.active) == [2]uint64{2, 2} })
	e.finish(t)
}

// TestRekeyDuringTransfer from both sides, again and again.
func TestRekeyDuringTransfer(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	stop, done := make(chan struct{}), make(chan error, 2)
	for _, c := range []*tcptest.Conn{e.active, e.server} {
		go func() {
			var err error
			for n := 0; err == nil && n < 10_000; n++ {
				select {
				case <-stop:
					done <- err
					return
				default:
					err = c.Secure().Rekey()
				}
			}
			done <- err
		}()
	}
	e.exchange(t, 4<<20)
	close(stop)
	if err := errors.Join(<-done, <-done); err != nil {
		t.Error(err)
	}
	if got := generations(e.active); got[0] < 2 {
		t.Errorf("generations %v", got)
	}
	e.finish(t)
}

// TestRekeyBehindFullSendBuffer goes out when there is room, without a Write.
func TestRekeyBehindFullSendBuffer(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	setBuffers(t, p.A, 8<<10, 8<<10)
	e := connect(t, p)
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
		if pk.Dir == tcptest.AtoB && len(pk.Payload()) > 0 {
			return nil
		}
		return []*tcptest.Packet{pk}
	})
	total := fill(t, e.active)
	if err := e.active.Secure().Rekey(); err != nil {
		t.Fatal(err)
	}
	if got := generations(e.active); got[0] != 0 {
		t.Errorf("generations %v with a full buffer", got)
	}
	p.SetHook(nil)
	if _, err := io.ReadFull(e.server, make([]byte, total)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, e.active.Queue, func() bool { return generations(e.active) == [2]uint64{1, 1} })
	e.finish(t)
}

// TestRekeyWhenItCannot says why, and during the key exchange is remembered.
func TestRekeyWhenItCannot(t *testing.T) {
	t.Run("plain", func(t *testing.T) {
		e := connect(t, tcptest.New(t, opts(new(toy), nil)))
		if err := e.active.Secure().Rekey(); !errors.Is(err, tcp.ErrNotEncrypted) {
			t.Error(err)
		}
		e.finish(t)
	})
	t.Run("after the last record", func(t *testing.T) {
		e := connect(t, tcptest.New(t, opts(new(toy), new(toy))))
		if err := e.active.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := e.active.Secure().Rekey(); !errors.Is(err, tcp.ErrSendClosed) {
			t.Error(err)
		}
		e.close()
	})
	t.Run("keying", func(t *testing.T) {
		p := tcptest.New(t, opts(new(toy), new(toy)))
		at := netip.AddrPortFrom(tcptest.B4, port)
		l := p.Listen(p.B, at, 10)
		defer l.Close()
		c := p.NewConn(p.A, tcptest.A4)
		if err := c.StartConnect(at); err != nil {
			t.Fatal(err)
		}
		<-c.Secure().Decided() // the other end answers when it is accepted
		if err := c.Secure().Rekey(); err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err := errors.Join(err, c.WaitReady(), s.WaitReady()); err != nil {
			t.Fatal(err)
		}
		waitFor(t, c.Queue, func() bool { return generations(c) == [2]uint64{1, 1} })
		ends{p, c, s}.finish(t)
	})
}

// fill writes until the send buffer is full, and returns how much.
func fill(t *testing.T, c *tcptest.Conn) (total int) {
	t.Helper()
	for {
		n, err := c.EP.Write(newReader(4000), tcpip.WriteOptions{})
		total += int(n)
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			return total
		default:
			t.Fatal(err)
		}
	}
}
