package socket

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
	"github.com/tcpcrypt/tcpcrypt/tun"
)

// armed is a hook that f takes over once it is on. Packets are IPv4.
type armed struct {
	on atomic.Bool
	f  func(packet []byte) []byte // may change the packet, or return nil to drop it
}

func (h *armed) hook(packet []byte) [][]byte {
	if h.on.Load() {
		if packet = h.f(packet); packet == nil {
			return nil
		}
	}
	return [][]byte{packet}
}

// alteredAfterKeys joins two hosts, and from then on f is in the path to the second.
func alteredAfterKeys(t *testing.T, f func(packet []byte) []byte) (ca, cb *Conn) {
	t.Helper()
	path := &armed{f: f}
	a, b := pair(t, tun.PipeOptions{AToB: path.hook})
	ca, cb = join(t, a, b, ConnOptions{}, ConnOptions{})
	if !security(t, ca).Encrypted || !security(t, cb).Encrypted {
		t.Fatal("not encrypted")
	}
	path.on.Store(true)
	return ca, cb
}

func segmentOf(packet []byte) header.TCP { return header.TCP(header.IPv4(packet).Payload()) }

// failsFor reads, and writes, until the error is final.
func failsFor(t *testing.T, c *Conn, want error) {
	t.Helper()
	for i := range 3 {
		_, err := c.Read(make([]byte, 10))
		var op *net.OpError
		if !errors.Is(err, want) || !errors.As(err, &op) {
			t.Fatalf("Read %d = %v, want %v", i, err, want)
		}
		for _, other := range []error{io.EOF, tcpcrypt.ErrAuth, tcpcrypt.ErrTruncated, syscall.ECONNRESET, net.ErrClosed} {
			if !errors.Is(want, other) && errors.Is(err, other) {
				t.Errorf("Read = %v, which is also %v", err, other)
			}
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, want) {
			t.Fatalf("Write %d = %v, want %v", i, err, want)
		}
	}
}

func TestAlteredRecordIsErrAuth(t *testing.T) {
	ca, cb := alteredAfterKeys(t, func(packet []byte) []byte {
		if len(segmentOf(packet).Payload()) > 0 {
			packet[len(packet)-1] ^= 1
		}
		return packet
	})
	mustWrite(t, ca, "hello")
	failsFor(t, cb, tcpcrypt.ErrAuth)
	failsFor(t, ca, syscall.ECONNRESET)
}

func TestForgedFINIsErrTruncated(t *testing.T) {
	for _, tt := range []struct {
		name string
		keep int // bytes of the record that arrive before the FIN
	}{{"between records", 0}, {"in a record", 10}} {
		t.Run(tt.name, func(t *testing.T) {
			cut := false // the pipe calls from one goroutine
			ca, cb := alteredAfterKeys(t, func(packet []byte) []byte {
				seg := segmentOf(packet)
				if cut || len(seg.Payload()) == 0 {
					return nil
				}
				cut = true
				packet = packet[:len(packet)-len(seg.Payload())+tt.keep]
				header.IPv4(packet).SetTotalLength(uint16(len(packet)))
				segmentOf(packet).SetFlags(uint8(header.TCPFlagFin | header.TCPFlagAck))
				return packet
			})
			mustWrite(t, ca, "hello")
			failsFor(t, cb, tcpcrypt.ErrTruncated)
		})
	}
}

func TestWaitingReadHearsOfReset(t *testing.T) {
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
			if err := cb.SetLinger(0); err != nil {
				t.Fatal(err)
			}
			if err := cb.Close(); err != nil {
				t.Fatal(err)
			}
			if err := <-done; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Read = %v, want ECONNRESET", err)
			}
		})
	}
}

// TestFallback is a middlebox that drops SYNs with ENO: the third SYN has none.
func TestFallback(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for two time-outs of TCP")
	}
	syns := 0
	a, b := pair(t, tun.PipeOptions{AToB: func(packet []byte) [][]byte {
		seg := segmentOf(packet)
		if seg.Flags().Contains(header.TCPFlagSyn) {
			syns++
			if bytes.Contains(seg.Options(), []byte{tcpcrypt.OptionKind, 4}) {
				return nil
			}
		}
		return [][]byte{packet}
	}})
	ca, cb := join(t, a, b, ConnOptions{}, ConnOptions{})
	mustWrite(t, ca, "hello")
	mustRead(t, cb, "hello")
	if got := security(t, ca); got.Encrypted || got.Reason != tcpcrypt.ReasonFallback {
		t.Errorf("%+v, want reason fallback", got)
	}
	if syns != 3 {
		t.Errorf("%d SYNs, want 3", syns)
	}
}

func TestKeepAliveFindsADeadPeer(t *testing.T) {
	path := &armed{f: func([]byte) []byte { return nil }} // the peer hears nothing any more
	a, b := pair(t, tun.PipeOptions{AToB: path.hook})
	keep := ConnOptions{KeepAlive: tcp.KeepAlive{Idle: time.Second, Interval: time.Second, Count: 2}}
	ca, cb := join(t, a, b, keep, ConnOptions{})
	security(t, cb)
	path.on.Store(true)
	for range 2 {
		if _, err := ca.Read(make([]byte, 1)); !errors.Is(err, tcp.ErrPeerDead) {
			t.Errorf("Read = %v, want ErrPeerDead", err)
		}
	}
}
