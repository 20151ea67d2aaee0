package tcp_test

import (
	"errors"
	"io"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

// A flood makes a toyCodec find one record without data after the other, as a peer can
// send them, for as long as it is on. Nobody should ask limit times in one go.
type flood struct {
	on     atomic.Bool
	opened atomic.Int64
}

const floodLimit = 5_000_000

var errFlooded = errors.New("toy: records without data are opened without end")

func (f *flood) open() error {
	if f.opened.Add(1) > floodLimit {
		return errFlooded
	}
	return nil
}

// TestEmptyRecordsHoldNobody: a peer that sends records without data, faster than they
// are opened, keeps neither Read nor Shutdown nor Close from returning.
func TestEmptyRecordsHoldNobody(t *testing.T) {
	for name, call := range map[string]func(*tcptest.Conn){
		"read": func(c *tcptest.Conn) {
			if _, err := c.EP.Read(io.Discard, tcpip.ReadOptions{}); err == nil {
				t.Error("Read found data")
			}
		},
		"shutdown": func(c *tcptest.Conn) { c.EP.Shutdown(tcpip.ShutdownRead | tcpip.ShutdownWrite) },
		"close":    func(c *tcptest.Conn) { c.EP.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			p := tcptest.New(t, opts(new(toy), new(toy)))
			e := connect(t, p)
			codec := tcp.CodecOf(e.server.Secure()).(*toyCodec)
			codec.flood.on.Store(true)
			call(e.server)
			codec.flood.on.Store(false)
			if n := codec.flood.opened.Load(); n > floodLimit {
				t.Errorf("opened %d records", n)
			}
			if err := e.server.Secure().Err(); err != nil {
				t.Errorf("the connection failed: %v", err)
			}
			e.close()
		})
	}
}
