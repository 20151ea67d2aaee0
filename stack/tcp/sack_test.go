package tcp_test

import (
	"io"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

// TestSACKAfterHalfClose: who has ended its own stream still tells what it has received.
// Without that the peer finds one hole in a retransmission time-out.
func TestSACKAfterHalfClose(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	if err := e.active.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(e.server); err != nil {
		t.Fatal(err)
	}
	var lost, told atomic.Bool
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
		switch {
		case pk.Dir == tcptest.BtoA && len(pk.Payload()) > 0 && !lost.Swap(true):
			return nil
		case pk.Dir == tcptest.AtoB && len(header.ParseTCPOptions(pk.TCP().Options()).SACKBlocks) > 0:
			told.Store(true)
		}
		return []*tcptest.Packet{pk}
	})
	send(t, e.server, e.active, random(1<<18))
	if !told.Load() {
		t.Error("no SACK for what came behind the lost segment")
	}
	e.close()
}
