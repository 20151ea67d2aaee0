package tcp_test

import (
	"bytes"
	"io"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

// rekeyCodec returns the codec of a connection, for a test that makes it ask.
func codecOf(t *testing.T, c *tcptest.Conn) *toyCodec {
	t.Helper()
	return tcp.CodecOf(c.Secure()).(*toyCodec)
}

// TestOwedWhileIdle: what the peer is owed goes out though the application neither
// reads nor writes; and if data is in front of it that nobody reads, not before that.
func TestOwedWhileIdle(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	asker, answerer := codecOf(t, e.active), codecOf(t, e.server)
	for i := range 3 {
		asker.rekey.Store(true)
		tcp.SealEmpty(e.active.Secure())
		waitFor(t, e.active.Queue, func() bool { return asker.remote.Load() == uint64(i+1) })
	}
	if n := answerer.remote.Load(); n != 3 {
		t.Errorf("%d requests were opened, want 3", n)
	}
	e.exchange(t, 1000)
	e.finish(t)
}

// TestOwedBehindTheLastRead: the request is behind the data of the last Read that the
// application does, and no event comes for it.
func TestOwedBehindTheLastRead(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	asker := codecOf(t, e.active)
	// Both records are there before the service looks, and the Read takes the first.
	p.Trace()
	if _, err := e.active.Write(random(1000)); err != nil {
		t.Fatal(err)
	}
	asker.rekey.Store(true)
	tcp.SealEmpty(e.active.Secure())
	if _, err := io.ReadFull(e.server, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, e.active.Queue, func() bool { return asker.remote.Load() == 1 })
	e.finish(t)
}

// TestOwedWhileOthersPay: what became owed while somebody held the lock who had found it
// paid already, and so could not be paid by who opened it.
func TestOwedWhileOthersPay(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	codec, calls := codecOf(t, e.server), 0
	owed := func() int {
		calls++
		switch calls {
		case 1, 3, 4: // owed; owed again
			return 1
		default: // paid by a writer meanwhile; paid by us
			return 0
		}
	}
	codec.owedHook.Store(&owed)
	tcp.PayOwed(e.server.Secure())
	codec.owedHook.Store(nil)
	if calls < 5 {
		t.Errorf("asked %d times what is owed, want until nothing was", calls)
	}
	e.finish(t)
}

// TestOwedBehindFullSendBuffer: an answer that has no room goes out when there is.
func TestOwedBehindFullSendBuffer(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	setBuffers(t, p.B, 8<<10, 8<<10)
	e := connect(t, p)
	asker, answerer := codecOf(t, e.active), codecOf(t, e.server)
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
		if pk.Dir == tcptest.BtoA && len(pk.Payload()) > 0 {
			return nil
		}
		return []*tcptest.Packet{pk}
	})
	total := 0
	for full := false; !full; {
		n, err := e.server.EP.Write(bytes.NewReader(random(4000)), tcpip.WriteOptions{})
		total += int(n)
		_, full = err.(*tcpip.ErrWouldBlock)
	}
	asker.rekey.Store(true)
	tcp.SealEmpty(e.active.Secure())
	waitFor(t, e.server.Queue, func() bool { return answerer.remote.Load() == 1 })
	if answerer.Owed() != 1 {
		t.Errorf("%d answers owed with a full buffer, want 1", answerer.Owed())
	}
	p.SetHook(nil)
	if _, err := io.ReadFull(e.active, make([]byte, total)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, e.active.Queue, func() bool { return asker.remote.Load() == 1 })
	e.finish(t)
}

// waitFor looks at each event of the queue, and now and then, whether a condition holds.
func waitFor(t *testing.T, q *waiter.Queue, cond func() bool) {
	t.Helper()
	entry, ch := waiter.NewChannelEntry(waiter.AllEvents)
	q.EventRegister(&entry)
	defer q.EventUnregister(&entry)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(tcptest.Patience)
	for !cond() {
		select {
		case <-ch:
		case <-tick.C:
		case <-deadline:
			t.Fatal("waited too long")
		}
	}
}
