package tcp_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

func newReader(n int) *bytes.Reader { return bytes.NewReader(random(n)) }

// often is a keep-alive that finds a dead peer in half a second, which is longer than a
// busy machine keeps a live one from answering.
var often = tcp.KeepAlive{Idle: 20 * time.Millisecond, Interval: 125 * time.Millisecond, Count: 4}

// many is several times as long as it takes often to find a dead peer.
const many = 2 * time.Second

// forLong waits while nothing happens, and fails if c fails.
func forLong(t *testing.T, conns ...*tcptest.Conn) {
	t.Helper()
	begin := time.Now()
	waitFor(t, conns[0].Queue, func() bool {
		for _, c := range conns {
			if err := c.Secure().Err(); err != nil {
				t.Fatal(err)
			}
		}
		return time.Since(begin) > many
	})
}

// TestKeepAliveAnswered: an idle connection is asked again and again, and lives.
func TestKeepAliveAnswered(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	e.active.Secure().SetKeepAlive(often)
	e.server.Secure().SetKeepAlive(often)
	waitFor(t, e.active.Queue, func() bool { g := generations(e.active); return g[0] > 5 && g[1] > 5 })
	forLong(t, e.active, e.server)
	e.active.Secure().SetKeepAlive(tcp.KeepAlive{})
	e.server.Secure().SetKeepAlive(tcp.KeepAlive{})
	e.exchange(t, 1000)
	e.finish(t)
}

// TestKeepAliveFindsDeadPeer: one whose packets do not come, and one whose TCP answers
// and nobody else.
func TestKeepAliveFindsDeadPeer(t *testing.T) {
	for _, silent := range []bool{true, false} {
		p := tcptest.New(t, opts(new(toy), new(toy)))
		e := connect(t, p)
		e.exchange(t, 1000)
		// Who waits for an acknowledgement leaves the asking to TCP, which takes minutes.
		waitFor(t, e.active.Queue, func() bool { return tcp.Quiet(e.active.Secure()) })
		if silent {
			p.SetHook(func(*tcptest.Packet) []*tcptest.Packet { return nil })
		} else {
			never := func() int { return 0 }
			codecOf(t, e.server).owedHook.Store(&never)
		}
		entry, ch := waiter.NewChannelEntry(waiter.EventErr | waiter.EventHUp)
		e.active.Queue.EventRegister(&entry)
		e.active.Secure().SetKeepAlive(often)
		select {
		case <-ch:
		case <-time.After(tcptest.Patience):
			t.Fatalf("silent=%v: still taken for alive", silent)
		}
		e.active.Queue.EventUnregister(&entry)
		if err := e.active.Secure().Err(); !errors.Is(err, tcp.ErrPeerDead) {
			t.Errorf("silent=%v: Err() = %v, want %v", silent, err, tcp.ErrPeerDead)
		}
		if g := generations(e.active); g[0] != 1 {
			t.Errorf("silent=%v: asked %d times, want once", silent, g[0])
		}
		if _, err := e.active.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("silent=%v: read: %v", silent, err)
		}
		e.close()
	}
}

// TestKeepAliveSparesPausedReaders: whose application leaves unread what is in front of
// the question, whether that fills the window or not, both ends asking.
func TestKeepAliveSparesPausedReaders(t *testing.T) {
	for name, write := range map[string]func(*testing.T, *tcptest.Conn) int{
		"100 kB": func(t *testing.T, c *tcptest.Conn) int {
			t.Helper()
			if _, err := c.Write(random(100_000)); err != nil {
				t.Error(err)
			}
			return 100_000
		},
		"full": fill,
		"a little": func(t *testing.T, c *tcptest.Conn) (total int) {
			t.Helper()
			for range 3 {
				if _, err := c.Write(random(100)); err != nil {
					t.Error(err)
				}
				total += 100
			}
			return total
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := tcptest.New(t, opts(new(toy), new(toy)))
			e := connect(t, p)
			total := write(t, e.active)
			e.active.Secure().SetKeepAlive(often)
			e.server.Secure().SetKeepAlive(often)
			forLong(t, e.active, e.server)
			if _, err := io.ReadFull(e.server, make([]byte, total)); err != nil {
				t.Fatal(err)
			}
			waitFor(t, e.active.Queue, func() bool { g := generations(e.active); return g[0] > 0 && g[1] > 1 })
			forLong(t, e.active, e.server)
			e.close()
		})
	}
}

// TestKeepAliveOfPlain is TCP's, also if it was set before anybody knew.
func TestKeepAliveOfPlain(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), nil))
	e := connect(t, p)
	e.active.Secure().SetKeepAlive(often)
	if !e.active.EP.SocketOptions().GetKeepAlive() {
		t.Fatal("off")
	}
	p.SetHook(func(*tcptest.Packet) []*tcptest.Packet { return nil })
	_, err := e.active.Read(make([]byte, 1))
	if _, ok := tcpError(err).(*tcpip.ErrTimeout); !ok {
		t.Errorf("read: %v, want a timeout", err)
	}
	e.close()
}
