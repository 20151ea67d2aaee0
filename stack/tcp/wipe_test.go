package tcp_test

import (
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

// TestFailureWipes: the session of a connection that has failed is closed though its
// owner has not closed the endpoint.
func TestFailureWipes(t *testing.T) {
	ext := new(toy)
	p := tcptest.New(t, opts(new(toy), ext))
	e := connect(t, p)
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
		if b := pk.Payload(); pk.Dir == tcptest.AtoB && len(b) > 0 {
			b[len(b)-1] ^= 1
			pk.Fix()
		}
		return []*tcptest.Packet{pk}
	})
	if _, err := e.active.Write(random(100)); err != nil {
		t.Fatal(err)
	}
	if _, err := e.server.Read(make([]byte, 100)); err == nil {
		t.Fatal("read works")
	}
	waitFor(t, e.server.Queue, func() bool { return ext.last().closed.Load() })
	if e.server.Secure().Err() == nil {
		t.Error("no error")
	}
	e.close()
}

// TestOptionInLaterSegmentsAlone: a peer without the option in its SYN is plain,
// whatever its later segments carry, at either end.
func TestOptionInLaterSegmentsAlone(t *testing.T) {
	for _, dir := range []tcptest.Direction{tcptest.AtoB, tcptest.BtoA} {
		t.Run(dir.String(), func(t *testing.T) {
			exts := [2]*toy{new(toy), new(toy)}
			exts[dir] = nil
			p := tcptest.New(t, opts(exts[0], exts[1]))
			p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
				if pk.Dir == dir && !pk.IsSYN() {
					pk.SetOptions(append(append([]byte(nil), pk.Options()...), 1, 1, toyKind, 2))
				}
				return []*tcptest.Packet{pk}
			})
			e := connect(t, p)
			if with := [2]*tcptest.Conn{e.active, e.server}[1-dir]; with.Secure().Encrypted() {
				t.Error("encrypted")
			}
			e.exchange(t, 10_000)
			e.finish(t)
		})
	}
}

// TestFirstACKWithData: the bare ACK is lost, so the first ACK that the passive end gets
// carries the hello, and the option.
func TestFirstACKWithData(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	lost := false
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
		if pk.Dir == tcptest.AtoB && !pk.IsSYN() && !lost && len(pk.Payload()) == 0 {
			lost = true
			return nil
		}
		return []*tcptest.Packet{pk}
	})
	e := connect(t, p)
	if !lost || !e.active.Secure().Encrypted() || !e.server.Secure().Encrypted() {
		t.Errorf("lost %v, not encrypted at both ends", lost)
	}
	e.exchange(t, 1000)
	e.finish(t)
}
