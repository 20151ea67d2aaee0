package tcp_test

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

// TestMisled: the option is stripped from the opener's ACK, so the passive end is plain
// and the opener sends its hello. No byte of it reaches a reader, however it is cut.
func TestMisled(t *testing.T) {
	for _, tt := range []struct {
		name  string
		size  int
		first bool // the ACK alone is stripped
		peek  bool
	}{{"whole", 1000, false, false}, {"bytes", 1, false, false}, {"three", 3, false, true}, {"first ACK alone", 1000, true, false}} {
		t.Run(tt.name, func(t *testing.T) {
			p := tcptest.New(t, opts(new(toy), new(toy)))
			p.Trace()
			acks := 0
			p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
				if pk.Dir == tcptest.AtoB && !pk.IsSYN() {
					if acks++; acks == 1 || !tt.first {
						pk.Strip(toyKind)
					}
				}
				return pk.Split(tt.size)
			})
			at := netip.AddrPortFrom(tcptest.B4, port)
			l := p.Listen(p.B, at, 10)
			defer l.Close()
			c := p.NewConn(p.A, tcptest.A4)
			if err := c.StartConnect(at); err != nil {
				t.Fatal(err)
			}
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if tt.peek {
				var got bytes.Buffer
				waitFor(t, s.Queue, func() bool {
					if s.EP.Readiness(waiter.ReadableEvents) == 0 {
						return false
					}
					_, err := s.EP.Read(&got, tcpip.ReadOptions{Peek: true})
					_, block := err.(*tcpip.ErrWouldBlock)
					return !block
				})
				if got.Len() != 0 {
					t.Errorf("peeked %q", &got)
				}
			}
			b := make([]byte, 100)
			n, err := s.Read(b)
			if n != 0 || err == nil || errors.Is(err, io.EOF) {
				t.Errorf("read %q, %v", b[:n], err)
			}
			if err := s.Secure().Err(); !errors.Is(err, tcp.ErrMisled) {
				t.Errorf("Err() = %v, want %v", err, tcp.ErrMisled)
			}
			if _, err := s.Write([]byte("x")); err == nil {
				t.Error("write works")
			}
			if err := c.WaitReady(); err == nil || c.Secure().Err() == nil {
				t.Errorf("the opener: %v, %v", err, c.Secure().Err())
			}
			p.Await(func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.BtoA && pk.Flags(header.TCPFlagRst) })
			c.Close()
			s.Close()
		})
	}
}

// TestNotMisled: a plain stream that begins like a hello and goes on otherwise, or ends,
// or stops, is delivered whole.
func TestNotMisled(t *testing.T) {
	for _, tt := range []struct {
		name  string
		parts []string
		end   bool
	}{
		{"another", []string{"GET /"}, false},
		{"goes on otherwise", []string{"toyhe", "ap"}, false},
		{"ends", []string{"toy"}, true},
		{"stops", []string{"t"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// The opener is plain TCP, and its SYN is given the option on the way.
			p := tcptest.New(t, opts(nil, new(toy)))
			p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
				if pk.Dir == tcptest.AtoB && pk.IsSYN() {
					pk.SetOptions(append(bytes.Clone(pk.Options()), toyKind, 4, 'x', 'x'))
				}
				return []*tcptest.Packet{pk}
			})
			e := connect(t, p)
			want := ""
			for i, part := range tt.parts {
				if _, err := e.active.Write([]byte(part)); err != nil {
					t.Fatal(err)
				}
				want += part
				if i+1 < len(tt.parts) {
					// Seen, judged, and not readable any more.
					waitFor(t, e.server.Queue, func() bool {
						used, _ := e.server.EP.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
						return used == len(want)
					})
					if _, err := e.server.EP.Read(io.Discard, tcpip.ReadOptions{}); err == nil {
						t.Fatal("the beginning was delivered")
					}
					if e.server.EP.Readiness(waiter.ReadableEvents) != 0 {
						t.Error("readable")
					}
				}
			}
			if tt.end {
				if err := e.active.CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(e.server, got); err != nil || string(got) != want {
				t.Errorf("read %q, %v, want %q", got, err, want)
			}
			if tt.end {
				if n, err := e.server.Read(got); !errors.Is(err, io.EOF) {
					t.Errorf("read %d, %v, want the end", n, err)
				}
			}
			if e.server.Secure().Encrypted() || e.server.Secure().Err() != nil {
				t.Error("not a plain connection that works")
			}
			e.close()
		})
	}
}
