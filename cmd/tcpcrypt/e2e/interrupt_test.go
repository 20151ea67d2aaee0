package e2e

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// Daemons that end while much is under way.

// A flood is a number of connections that move the marker both ways until they fail.
type flood struct {
	wg    sync.WaitGroup
	conns []*net.TCPConn
	bytes chan struct{}   // closed once every connection has moved something
	pumps []chan struct{} // one per end: closed when its writer has failed
}

const floodPort = 85

func (n *network) flood(t *testing.T, connections int) *flood {
	t.Helper()
	f := &flood{bytes: make(chan struct{})}
	l := n.b.listen(t, floodPort)
	text := []byte(strings.Repeat(marker, 100))
	var moved sync.WaitGroup
	pump := func(conn *net.TCPConn) {
		failed := make(chan struct{})
		f.pumps = append(f.pumps, failed)
		f.wg.Go(func() {
			defer close(failed)
			// Slow enough for captures to keep up.
			for tick := time.NewTicker(2 * time.Millisecond); ; <-tick.C {
				if _, err := conn.Write(text); err != nil {
					return
				}
			}
		})
		f.wg.Go(func() {
			buf := make([]byte, len(text))
			first := true
			for {
				n, err := io.ReadFull(conn, buf)
				if first && n > 0 {
					moved.Done()
					first = false
				}
				if err != nil {
					return
				}
			}
		})
	}
	for i := range connections {
		moved.Add(2)
		client := n.a.mustDial(t, netip.AddrPortFrom(n.b.addr(i%2 == 1), floodPort))
		server := accept(t, l)
		for _, c := range []*net.TCPConn{client, server} {
			if err := c.SetDeadline(time.Time{}); err != nil { // no failure but the connection's own
				t.Fatal(err)
			}
			f.conns = append(f.conns, c)
		}
		pump(client)
		pump(server)
	}
	go func() {
		moved.Wait()
		close(f.bytes)
	}()
	return f
}

// running waits until every connection has moved data both ways.
func (f *flood) running(t *testing.T) {
	t.Helper()
	select {
	case <-f.bytes:
	case <-time.After(patience):
		t.Fatal("some connections move nothing")
	}
}

// ended closes what is left and waits.
func (f *flood) ended() {
	for _, c := range f.conns {
		_ = c.Close()
	}
	f.wg.Wait()
}

// inClear looks for the marker on any link, in segments of the flood.
func (n *network) inClear(t *testing.T) {
	t.Helper()
	for _, host := range []string{"a", "b"} {
		for _, s := range segments(n.captured(t, host), floodPort) {
			if bytes.Contains(s.Payload, []byte("plain"+"text")) {
				t.Errorf("link of host %s: in clear: %v", host, &s)
				return
			}
		}
	}
}

func TestStopDuringTransfersLeaksNothingAndCleansUp(t *testing.T) {
	t.Parallel()
	for _, which := range []string{"a", "b"} {
		t.Run("on host "+which, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t, networkOptions{capture: true})
			stopped := n.a
			if which == "b" {
				stopped = n.b
			}
			before := stopped.state(t)
			a, b := n.daemons(t)
			f := n.flood(t, 6)
			f.running(t)
			if which == "a" {
				a.stop(t)
			} else {
				b.stop(t)
			}
			f.wg.Wait() // every connection fails by itself
			sameState(t, "after a stop in full flow", before, stopped.state(t))
			n.finish(t)
			n.inClear(t)
		})
	}
}

// After kill -9 no tail of what was encrypted leaves in clear, whichever host it was.
func TestKillDuringTransfersLeaksNothing(t *testing.T) {
	t.Parallel()
	for _, which := range []string{"a", "b"} {
		t.Run("on host "+which, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t, networkOptions{capture: true})
			a, b := n.daemons(t)
			f := n.flood(t, 6)
			f.running(t)
			if which == "a" {
				a.kill(t)
			} else {
				b.kill(t)
			}
			hear := func() { // the programs on that host do not wait for ever
				late := time.After(patience)
				for i, failed := range f.pumps {
					if (i%2 == 0) != (which == "a") {
						continue
					}
					select {
					case <-failed:
						continue
					case <-late:
					}
					t.Errorf("connection %d: the program waits, and perhaps others do", i)
					break
				}
			}
			if which == "a" {
				hear() // at their next send
			}
			// And new connections flow, in clear where the other side is alone.
			n.b.serveTransfers(t, 80)
			if _, err := n.a.transfer(soon(t), netip.AddrPortFrom(n.b.Addr4(), 80), 100_000, 100_000); err != nil {
				t.Errorf("a new connection: %v", err)
			}
			if which == "b" {
				// A service's sockets are bound to an address that went with the device: the
				// kernel lets them send nothing, not even to be refused. The next start resets them.
				n.b.up(t, everything(opportunistic, ""))
				hear()
			}
			f.ended()
			n.finish(t)
			n.inClear(t)
		})
	}
}

// One end loses a segment of the handshake after the other: every single one of the
// first segments may be lost, in both directions, and the connection is encrypted.
func TestAnyEarlySegmentMayBeLost(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	a, _ := n.daemons(t)
	server := n.b.serveTransfers(t, 80)
	drop, seen := -1, 0
	var mu sync.Mutex
	n.intercept(t, func(s *wirepeer.Segment) []*wirepeer.Segment {
		mu.Lock()
		defer mu.Unlock()
		if seen++; seen == drop {
			return nil
		}
		return []*wirepeer.Segment{s}
	})
	for i := 1; i <= 8; i++ {
		mu.Lock()
		drop, seen = i, 0
		mu.Unlock()
		local, err := n.a.transfer(soon(t), netip.AddrPortFrom(n.b.Addr4(), 80), 1000, 1000)
		if err != nil {
			t.Fatalf("segment %d lost: %v", i, err)
		}
		got := a.conn(t, "the connection", func(c conn) bool { return c.Local == local.String() && c.State == "closed" })
		if !got.Encrypted {
			t.Errorf("segment %d lost: %v", i, got)
		}
	}
	if err := server.failures(); err != nil {
		t.Error(err)
	}
}
