package tcp_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

// setBuffers sets the sizes of both buffers of new endpoints, in bytes.
func setBuffers(tb testing.TB, s *stack.Stack, send, receive int) {
	tb.Helper()
	sb := tcpip.TCPSendBufferSizeRangeOption{Min: 1, Default: send, Max: send}
	rb := tcpip.TCPReceiveBufferSizeRangeOption{Min: 1, Default: receive, Max: receive}
	if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, &sb); err != nil {
		tb.Fatal(err)
	}
	if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, &rb); err != nil {
		tb.Fatal(err)
	}
	off := tcpip.TCPModerateReceiveBufferOption(false)
	if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, &off); err != nil {
		tb.Fatal(err)
	}
}

// TestBadPaths sends much through paths that lose, reorder, repeat, cut up or join
// segments, with both ways of finding losses.
func TestBadPaths(t *testing.T) {
	const percent = 100
	hooks := map[string]func(r *rand.Rand) tcptest.Hook{
		"loss": func(r *rand.Rand) tcptest.Hook {
			return func(pk *tcptest.Packet) []*tcptest.Packet {
				if r.IntN(percent) < 2 {
					return nil
				}
				return []*tcptest.Packet{pk}
			}
		},
		"reordering": func(r *rand.Rand) tcptest.Hook {
			var held [2]*tcptest.Packet
			return func(pk *tcptest.Packet) []*tcptest.Packet {
				if h := held[pk.Dir]; h != nil {
					held[pk.Dir] = nil
					return []*tcptest.Packet{pk, h}
				}
				if r.IntN(percent) < 5 {
					held[pk.Dir] = pk
					return nil
				}
				return []*tcptest.Packet{pk}
			}
		},
		"loss and reordering": func(r *rand.Rand) tcptest.Hook {
			var held [2]*tcptest.Packet
			return func(pk *tcptest.Packet) []*tcptest.Packet {
				if r.IntN(percent) < 1 {
					return nil
				}
				if h := held[pk.Dir]; h != nil {
					held[pk.Dir] = nil
					return []*tcptest.Packet{pk, h}
				}
				if r.IntN(percent) < 5 {
					held[pk.Dir] = pk
					return nil
				}
				return []*tcptest.Packet{pk}
			}
		},
		"duplicates": func(r *rand.Rand) tcptest.Hook {
			return func(pk *tcptest.Packet) []*tcptest.Packet {
				if r.IntN(percent) < 20 {
					return []*tcptest.Packet{pk, pk.Clone()}
				}
				return []*tcptest.Packet{pk}
			}
		},
		"resegmentation": func(r *rand.Rand) tcptest.Hook {
			return func(pk *tcptest.Packet) []*tcptest.Packet { return pk.Split(1 + r.IntN(700)) }
		},
		"coalescing": func(r *rand.Rand) tcptest.Hook {
			var held *tcptest.Packet
			return func(pk *tcptest.Packet) []*tcptest.Packet {
				if pk.Dir == tcptest.BtoA || len(pk.Payload()) == 0 {
					if h := held; h != nil && pk.Dir == h.Dir {
						held = nil
						return []*tcptest.Packet{h, pk}
					}
					return []*tcptest.Packet{pk}
				}
				h := held
				if h == nil {
					if r.IntN(2) == 0 {
						held = pk
						return nil
					}
					return []*tcptest.Packet{pk}
				}
				held = nil
				if h.TCP().SequenceNumber()+uint32(len(h.Payload())) != pk.TCP().SequenceNumber() {
					return []*tcptest.Packet{h, pk}
				}
				h.SetPayload(append(bytes.Clone(h.Payload()), pk.Payload()...))
				return []*tcptest.Packet{h}
			}
		},
	}
	for name, hook := range hooks {
		for _, rack := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/rack=%v", name, rack), func(t *testing.T) {
				t.Parallel()
				p := tcptest.New(t, opts(new(toy), new(toy)))
				if !rack {
					none := tcpip.TCPRecovery(0)
					for _, s := range []*stack.Stack{p.A, p.B} {
						if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, &none); err != nil {
							t.Fatal(err)
						}
					}
				}
				p.SetHook(hook(rand.New(rand.NewPCG(1, 2))))
				e := connect(t, p)
				if !e.active.Secure().Encrypted() {
					t.Fatal("not encrypted")
				}
				const size = 3 << 20
				b := random(size)
				send(t, e.active, e.server, b)
				send(t, e.server, e.active, b[:size/3])
				e.close()
			})
		}
	}
}

// TestOneByteSegments: every byte of both streams in a segment of its own.
func TestOneByteSegments(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet { return pk.Split(1) })
	e := connect(t, p)
	e.exchange(t, 3000)
	e.finish(t)
}

// TestRecordsLargerThanTheWindow: the record layer takes bytes out of TCP as they
// come, or both ends would wait for ever.
func TestRecordsLargerThanTheWindow(t *testing.T) {
	for _, window := range []int{4 << 10, 16 << 10} {
		t.Run(fmt.Sprint(window), func(t *testing.T) {
			o := opts(new(toy), new(toy))
			o.Offload = true
			p := tcptest.New(t, o)
			// netstack advertises half of the buffer.
			setBuffers(t, p.B, 1<<20, 2*window)
			e := connect(t, p)
			send(t, e.active, e.server, random(4<<20))
			send(t, e.server, e.active, random(1<<20))
			e.close()
		})
	}
}

// TestTinyBuffers at both ends, both ways at once.
func TestTinyBuffers(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	for _, s := range []*stack.Stack{p.A, p.B} {
		setBuffers(t, s, 4<<10, 4<<10)
	}
	e := connect(t, p)
	e.exchange(t, 200_000)
	e.finish(t)
}

// TestSmallReadsAndWrites: odd sizes at both ends.
func TestSmallReadsAndWrites(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	b := random(300_000)
	errc := make(chan error, 1)
	go func() {
		r := rand.New(rand.NewPCG(3, 4))
		for rest := b; len(rest) > 0; {
			n := min(1+r.IntN(3000), len(rest))
			if _, err := e.active.Write(rest[:n]); err != nil {
				errc <- err
				return
			}
			rest = rest[n:]
		}
		errc <- e.active.CloseWrite()
	}()
	var got []byte
	r := rand.New(rand.NewPCG(5, 6))
	for {
		buf := make([]byte, 1+r.IntN(2000))
		n, err := e.server.Read(buf)
		got = append(got, buf[:n]...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := <-errc; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, b) {
		t.Errorf("%d bytes came, %d were sent", len(got), len(b))
	}
	if sent, _ := e.active.Secure().Transferred(); sent != uint64(len(b)) {
		t.Errorf("sent %d by its own count, want %d", sent, len(b))
	}
	if _, received := e.server.Secure().Transferred(); received != uint64(len(b)) {
		t.Errorf("received %d by its own count, want %d", received, len(b))
	}
	e.close()
}

// genericPayload is a Payloader that lends nothing.
type genericPayload struct{ r *bytes.Reader }

func (g genericPayload) Read(b []byte) (int, error) { return g.r.Read(b) }
func (g genericPayload) Len() int                   { return g.r.Len() }

func TestWriteFromAnyPayloader(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	b := random(100_000)
	n, err := e.active.EP.Write(genericPayload{bytes.NewReader(b)}, tcpip.WriteOptions{})
	if err != nil || n != int64(len(b)) {
		t.Fatalf("wrote %d: %v", n, err)
	}
	got := make([]byte, len(b))
	if _, err := io.ReadFull(e.server, got); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("read: %v", err)
	}
	e.finish(t)
}

func TestPeekTakesNothing(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	if _, err := e.active.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	var first [1]byte
	if _, err := e.server.Read(first[:]); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var b bytes.Buffer
		res, err := e.server.EP.Read(&b, tcpip.ReadOptions{Peek: true})
		if err != nil || b.String() != "ello" || res.Count != 4 {
			t.Errorf("peek: %q, %+v, %v", b.String(), res, err)
		}
	}
	if n, err := e.server.EP.GetSockOptInt(tcpip.ReceiveQueueSizeOption); n != 4 || err != nil {
		t.Errorf("receive queue %d, %v, want 4", n, err)
	}
	e.close()
}

// TestReadiness: buffered plaintext is readable though TCP has nothing, and nothing is
// readable that Read would not return.
func TestReadiness(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	if r := e.server.EP.Readiness(waiter.ReadableEvents | waiter.WritableEvents); r != waiter.WritableEvents {
		t.Errorf("readiness of a fresh connection %b, want writable", r)
	}
	if _, err := e.active.Write([]byte("ab")); err != nil {
		t.Fatal(err)
	}
	if _, err := e.server.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if r := e.server.EP.Readiness(waiter.ReadableEvents); r != waiter.ReadableEvents {
		t.Errorf("a byte is left, readiness %b", r)
	}
	if _, err := e.server.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if r := e.server.EP.Readiness(waiter.ReadableEvents); r != 0 {
		t.Errorf("nothing is left, readiness %b", r)
	}
	e.close()
}

// TestHalfClose: each end's stream ends by itself, and data flows the other way.
func TestHalfClose(t *testing.T) {
	for _, first := range []string{"active", "passive"} {
		t.Run(first, func(t *testing.T) {
			p := tcptest.New(t, opts(new(toy), new(toy)))
			e := connect(t, p)
			one, other := e.active, e.server
			if first == "passive" {
				one, other = other, one
			}
			send(t, one, other, random(10000))
			if _, err := one.Write([]byte("x")); tcpError(err) == nil {
				t.Errorf("write after the end: %v", err)
			}
			send(t, other, one, random(200_000))
			for _, c := range []*tcptest.Conn{one, other} {
				if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
					t.Errorf("read after the end: %d, %v", n, err)
				}
				if err := c.Secure().Err(); err != nil {
					t.Errorf("a clean end left %v", err)
				}
			}
			e.close()
		})
	}
}

// dataHook calls change for the n-th segment with payload from B to A after the
// handshake's hello.
func dataHook(n int, change func(*tcptest.Packet) []*tcptest.Packet) tcptest.Hook {
	seen := 0
	return func(pk *tcptest.Packet) []*tcptest.Packet {
		if pk.Dir == tcptest.BtoA && len(pk.Payload()) > 0 {
			if seen++; seen == n {
				return change(pk)
			}
		}
		return []*tcptest.Packet{pk}
	}
}

// TestFlippedByte: the reader gets what came before it, then an error that is neither
// the end nor a peer's reset; and the peer gets a reset.
func TestFlippedByte(t *testing.T) {
	for _, at := range []int{0, 2, 5, 400} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			p := tcptest.New(t, opts(new(toy), new(toy)))
			e := connect(t, p)
			p.SetHook(dataHook(2, func(pk *tcptest.Packet) []*tcptest.Packet {
				pk.Payload()[at] ^= 0x80
				pk.Fix()
				return []*tcptest.Packet{pk}
			}))
			want := random(1000)
			if _, err := e.server.Write(want); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(e.active, got); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("the record before: %v", err)
			}
			go func() {
				// More than one record, since a length that grew waits for bytes.
				for {
					if _, err := e.server.Write(want); err != nil {
						return
					}
				}
			}()
			n, err := e.active.Read(got)
			var own *tcp.Error
			if te, ok := tcpError(err).(*tcp.Error); ok {
				own = te
			}
			if n != 0 || own == nil || !errors.Is(own.Cause(), errToySum) {
				t.Errorf("read: %d, %v, want the record's error", n, err)
			}
			if err := e.active.Secure().Err(); !errors.Is(err, errToySum) {
				t.Errorf("Err: %v", err)
			}
			if _, again := e.active.Read(got); tcpError(again) != tcpError(err) {
				t.Errorf("second read: %v, want the same error", again)
			}
			if _, err := e.active.Write(got); tcpError(err) == nil {
				t.Errorf("write: %v", err)
			}
			for {
				if _, err := e.server.Read(got); err != nil {
					if _, ok := tcpError(err).(*tcpip.ErrConnectionReset); !ok {
						t.Errorf("the peer's read: %v, want a reset", err)
					}
					break
				}
			}
			e.close()
		})
	}
}

// TestReplayedRecord: a record's bytes once more in place of the next record.
func TestReplayedRecord(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	var first []byte
	n := 0
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
		if pk.Dir == tcptest.BtoA && len(pk.Payload()) > 0 {
			if n++; n == 1 {
				first = bytes.Clone(pk.Payload())
			} else {
				copy(pk.Payload(), first)
				pk.Fix()
			}
		}
		return []*tcptest.Packet{pk}
	})
	msg := random(500)
	got := make([]byte, len(msg))
	for i := range 2 {
		if _, err := e.server.Write(msg); err != nil {
			t.Fatal(err)
		}
		_, err := io.ReadFull(e.active, got)
		if i == 1 && !errors.Is(e.active.Secure().Err(), errToySum) {
			t.Errorf("replay: %v", err)
		}
	}
	e.close()
}

// TestTruncation: FIN without a last record, between two records and inside one, is an
// abort with its own error and not the end of the stream.
func TestTruncation(t *testing.T) {
	for _, cut := range []int{0, 1, 4, 100} {
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			p := tcptest.New(t, opts(new(toy), new(toy)))
			e := connect(t, p)
			p.Trace()
			p.SetHook(dataHook(2, func(pk *tcptest.Packet) []*tcptest.Packet {
				pk.SetPayload(bytes.Clone(pk.Payload()[:cut]))
				pk.TCP().SetFlags(uint8(pk.TCP().Flags() | header.TCPFlagFin))
				pk.Fix()
				return []*tcptest.Packet{pk}
			}))
			msg := random(1000)
			got := make([]byte, 2*len(msg))
			for range 2 {
				if _, err := e.server.Write(msg); err != nil {
					t.Fatal(err)
				}
			}
			n, err := io.ReadFull(e.active, got)
			if n != len(msg) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("read %d: %v, want %d and no end", n, err, len(msg))
			}
			if te, ok := tcpError(err).(*tcp.Error); !ok || !errors.Is(te.Cause(), tcp.ErrTruncated) {
				t.Errorf("read: %v, want truncation", err)
			}
			if err := e.active.Secure().Err(); !errors.Is(err, tcp.ErrTruncated) {
				t.Errorf("Err: %v", err)
			}
			p.Await(func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.AtoB && pk.Flags(header.TCPFlagRst) })
			e.close()
		})
	}
}

// TestBytesAfterTheLastRecord abort, whether or not anybody reads on.
func TestBytesAfterTheLastRecord(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
		if pk.Dir == tcptest.BtoA && pk.Flags(header.TCPFlagFin) {
			pk.TCP().SetFlags(uint8(pk.TCP().Flags() &^ header.TCPFlagFin))
			pk.SetPayload(append(bytes.Clone(pk.Payload()), "more"...))
		}
		return []*tcptest.Packet{pk}
	})
	if err := e.server.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, e.active.Queue, func() bool { return e.active.Secure().Err() != nil })
	if err := e.active.Secure().Err(); !errors.Is(err, tcp.ErrAfterEnd) {
		t.Errorf("Err: %v", err)
	}
	e.close()
}

// TestFINGoesWithTheLastRecord, in one segment, also when it is sent again or when the
// stream ends behind much data.
func TestFINGoesWithTheLastRecord(t *testing.T) {
	for _, size := range []int{0, 10, 100_000} {
		for _, lose := range []bool{false, true} {
			for _, offload := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d/lose=%v/offload=%v", size, lose, offload), func(t *testing.T) {
					o := opts(new(toy), new(toy))
					o.Offload = offload
					p := tcptest.New(t, o)
					e := connect(t, p)
					p.Trace()
					fins := 0
					p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
						if pk.Dir == tcptest.AtoB && pk.Flags(header.TCPFlagFin) {
							if fins++; fins == 1 && lose {
								return nil
							}
						}
						return []*tcptest.Packet{pk}
					})
					send(t, e.active, e.server, random(size))
					send(t, e.server, e.active, random(size))
					e.close()
					fin := p.Await(func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.AtoB && pk.Flags(header.TCPFlagFin) })
					if len(fin.Payload()) < toyOverhead || !fin.Flags(header.TCPFlagPsh) {
						t.Errorf("FIN is not with the last record: %s", fin)
					}
					if n := p.A.Stats().TCP.CurrentEstablished.Value(); n != 0 {
						t.Errorf("%d connections are still established", n)
					}
				})
			}
		}
	}
}

// TestPeerResetStaysAReset: it is not the record layer's error.
func TestPeerResetStaysAReset(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	e.server.EP.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
	p.Trace()
	e.server.Close()
	if _, err := e.active.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read: %v, want a reset", err)
	} else if _, ok := tcpError(err).(*tcpip.ErrConnectionReset); !ok {
		t.Errorf("read: %v, want a reset", err)
	}
	if _, err := e.active.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
		t.Error("the second read says end-of-file")
	}
	for _, pk := range p.Packets() {
		if len(pk.Payload()) > 0 {
			t.Errorf("linger 0 sent a record: %s", pk)
		}
	}
	e.active.Close()
}

// TestCloseWithUnreadDataResets, in TCP or in the record layer, and without it ends the
// stream cleanly, whatever records without data are there.
func TestCloseWithUnreadData(t *testing.T) {
	for _, tt := range []struct {
		name  string
		read  int
		reset bool
	}{
		{"all of it", 0, true},
		{"half a record", 500, true},
		{"none", 1000, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tcptest.New(t, opts(new(toy), new(toy)))
			e := connect(t, p)
			p.Trace()
			if _, err := e.server.Write(random(1000)); err != nil {
				t.Fatal(err)
			}
			waitFor(t, e.active.Queue, func() bool { return e.active.EP.Readiness(waiter.ReadableEvents) != 0 })
			if tt.read > 0 {
				if _, err := io.ReadFull(e.active, make([]byte, tt.read)); err != nil {
					t.Fatal(err)
				}
			}
			e.active.Close()
			_, err := e.server.Read(make([]byte, 1))
			if _, reset := tcpError(err).(*tcpip.ErrConnectionReset); reset != tt.reset {
				t.Errorf("the peer's read: %v", err)
			}
			e.server.Close()
		})
	}
}

// TestCloseThenPeersLastRecord: the peer's last record reaches an endpoint that is
// closed. It is no data, and nobody gets a reset.
func TestCloseThenPeersLastRecord(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	p.Trace()
	e.active.Close()
	if n, err := e.server.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read: %d, %v", n, err)
	}
	if err := e.server.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	fin := p.Await(func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.BtoA && pk.Flags(header.TCPFlagFin) })
	p.Await(func(pk *tcptest.Packet) bool {
		return pk.Dir == tcptest.AtoB && pk.TCP().AckNumber() == fin.TCP().SequenceNumber()+uint32(len(fin.Payload()))+1
	})
	e.server.Close()
	for _, pk := range p.Packets() {
		if pk.Flags(header.TCPFlagRst) {
			t.Errorf("reset: %s", pk)
		}
	}
}

// TestDataToAClosedEndpointResets, as in TCP.
func TestDataToAClosedEndpointResets(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	p.Trace()
	e.active.Close()
	if _, err := e.server.Write(random(1000)); err != nil {
		t.Fatal(err)
	}
	p.Await(func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.AtoB && pk.Flags(header.TCPFlagRst) })
	var err error
	for err == nil {
		_, err = e.server.Write(random(1000))
	}
	e.server.Close()
}

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
		answerer.rekey.Store(true) // so that the asker sees the answer
		tcp.SealEmpty(e.active.Secure())
		waitFor(t, e.active.Queue, func() bool { return asker.answers.Load() == int32(i+1) })
	}
	if n := answerer.answers.Load(); n != 3 {
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
	asker, answerer := codecOf(t, e.active), codecOf(t, e.server)
	// Both records are there before the service looks, and the Read takes the first.
	p.Trace()
	if _, err := e.active.Write(random(1000)); err != nil {
		t.Fatal(err)
	}
	asker.rekey.Store(true)
	answerer.rekey.Store(true)
	tcp.SealEmpty(e.active.Secure())
	if _, err := io.ReadFull(e.server, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, e.active.Queue, func() bool { return asker.answers.Load() == 1 })
	e.finish(t)
}

// TestShutdownBothThenClose leaves nothing behind, at once or later.
func TestShutdownBothThenClose(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	e := connect(t, p)
	if err := e.active.EP.Shutdown(tcpip.ShutdownRead | tcpip.ShutdownWrite); err != nil {
		t.Fatal(err)
	}
	if n, err := e.server.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read: %d, %v, want the end", n, err)
	}
	if n, err := e.active.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read after Shutdown: %d, %v, want the end", n, err)
	}
	e.close()
	for _, c := range []*tcptest.Conn{e.active, e.server} {
		neg := c.Secure().Negotiator().(*toyNeg)
		waitFor(t, c.Queue, neg.closed.Load)
		if err := c.Secure().Err(); err != nil {
			t.Errorf("a clean end left %v", err)
		}
	}
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
	waitFor(t, e.server.Queue, func() bool { return answerer.answers.Load() == 1 })
	if answerer.Owed() != 1 {
		t.Errorf("%d answers owed with a full buffer, want 1", answerer.Owed())
	}
	answerer.rekey.Store(true)
	p.SetHook(nil)
	if _, err := io.ReadFull(e.active, make([]byte, total)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, e.active.Queue, func() bool { return asker.answers.Load() == 1 })
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

// TestHandshakeTimeout: a peer that never says hello is given up.
func TestHandshakeTimeout(t *testing.T) {
	o := opts(nil, &toy{HoldHello: true})
	o.A = tcp.NewProtocolWithOptions(tcp.Options{Extension: new(toy), HandshakeTimeout: 50 * time.Millisecond})
	p := tcptest.New(t, o)
	l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, port), 10)
	defer l.Close()
	p.Trace()
	c, err := p.Dial(p.A, netip.AddrPortFrom(tcptest.B4, port))
	if !errors.Is(err, tcp.ErrHandshakeTimeout) {
		t.Errorf("dial: %v, want a timeout", err)
	}
	p.Await(func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.AtoB && pk.Flags(header.TCPFlagRst) })
	c.Close()
}

// TestShutdownDuringKeyExchange is remembered and done when keys are there.
func TestShutdownDuringKeyExchange(t *testing.T) {
	for _, close := range []bool{false, true} {
		t.Run(fmt.Sprintf("close=%v", close), func(t *testing.T) {
			p := tcptest.New(t, opts(new(toy), new(toy)))
			l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, port), 10)
			defer l.Close()
			c := p.NewConn(p.A, tcptest.B4)
			if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, port)); err != nil {
				t.Fatal(err)
			}
			<-c.Secure().Decided()
			// The other end answers when it is accepted.
			if _, err := c.EP.Write(bytes.NewReader([]byte("early")), tcpip.WriteOptions{}); err == nil {
				t.Error("wrote before keys were there")
			}
			if close {
				c.Close()
			} else if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if n, err := s.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("read: %d, %v, want the end", n, err)
			}
			if err := s.Secure().Err(); err != nil {
				t.Error(err)
			}
			if !close {
				send(t, s, c, []byte("answer"))
				c.Close()
			}
			s.Close()
		})
	}
}

// TestAbortDuringKeyExchange ends it at both ends.
func TestAbortDuringKeyExchange(t *testing.T) {
	for _, how := range []string{"abort", "linger"} {
		t.Run(how, func(t *testing.T) {
			p := tcptest.New(t, opts(new(toy), &toy{HoldHello: true}))
			l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, port), 10)
			defer l.Close()
			c := p.NewConn(p.A, tcptest.B4)
			if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, port)); err != nil {
				t.Fatal(err)
			}
			<-c.Secure().Decided()
			if how == "abort" {
				c.EP.Abort()
			} else {
				c.EP.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
				c.Close()
			}
			<-c.Secure().Ready()
			if _, err := c.EP.Write(bytes.NewReader([]byte("x")), tcpip.WriteOptions{}); err == nil {
				t.Error("write worked")
			}
		})
	}
}

// TestOverReadIsGivenBack: a handshake may read what belongs to the first record.
func TestOverReadIsGivenBack(t *testing.T) {
	p := tcptest.New(t, opts(&toy{OverRead: true}, &toy{OverRead: true}))
	// Nothing of B reaches A until B's first record is behind its hello.
	var held []*tcptest.Packet
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
		if pk.Dir != tcptest.BtoA || len(pk.Payload()) == 0 || len(held) >= 2 {
			return []*tcptest.Packet{pk}
		}
		held = append(held, pk)
		if len(held) < 2 {
			return nil
		}
		held[0].SetPayload(append(bytes.Clone(held[0].Payload()), held[1].Payload()...))
		return held[:1]
	})
	l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, port), 10)
	defer l.Close()
	c := p.NewConn(p.A, tcptest.B4)
	if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, port)); err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WaitReady(); err != nil {
		t.Fatal(err)
	}
	want := random(300)
	if _, err := s.Write(want); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read: %v", err)
	}
	ends{p, c, s}.finish(t)
}

// TestHelloHasPSH: the handshake's last byte is in a segment with PSH, which holds
// nothing of the records behind it, even if the link takes super-segments.
func TestHelloHasPSH(t *testing.T) {
	o := opts(new(toy), new(toy))
	o.Offload = true
	p := tcptest.New(t, o)
	p.Trace()
	e := connect(t, p)
	send(t, e.server, e.active, random(200_000))
	send(t, e.active, e.server, random(200_000))
	e.close()
	var seen [2]bool
	for _, pk := range p.Packets() {
		if len(pk.Payload()) > 0 && !seen[pk.Dir] {
			seen[pk.Dir] = true
			if len(pk.Payload()) != toyHello || !pk.Flags(header.TCPFlagPsh) {
				t.Errorf("first data: %s", pk)
			}
		}
	}
}

// TestRecordSizeAdapts: small at the start and after a pause, whole super-segments in
// bulk.
func TestRecordSizeAdapts(t *testing.T) {
	o := opts(new(toy), new(toy))
	o.Offload = true
	p := tcptest.New(t, o)
	e := connect(t, p)
	p.Trace()
	send(t, e.server, e.active, random(4<<20))
	e.close()
	// The trace may join records, so read lengths from the stream.
	var stream []byte
	var next uint32
	for _, pk := range p.Packets() {
		if pk.Dir != tcptest.BtoA || len(pk.Payload()) == 0 {
			continue
		}
		if next == 0 {
			next = pk.TCP().SequenceNumber()
		}
		if pk.TCP().SequenceNumber() == next {
			stream = append(stream, pk.Payload()...)
			next += uint32(len(pk.Payload()))
		}
	}
	var sizes []int
	for len(stream) > toyHeader {
		n := toyHeader + int(stream[0])<<8 + int(stream[1])
		sizes = append(sizes, n)
		stream = stream[min(n, len(stream)):]
	}
	if len(sizes) < 10 {
		t.Fatalf("records %v", sizes)
	}
	if first := sizes[0]; first > 1460 {
		t.Errorf("first record has %d bytes, want one packet's", first)
	}
	largest := 0
	for _, n := range sizes {
		largest = max(largest, n)
	}
	if largest < 60<<10 {
		t.Errorf("largest record has %d bytes, want nearly 64 KiB", largest)
	}
	if largest%(1500-40-12) != 0 && largest%(1500-40-12-28) != 0 {
		t.Errorf("largest record has %d bytes, want whole packets", largest)
	}
}

// TestHugePackets: a packet may be larger than the largest record.
func TestHugePackets(t *testing.T) {
	for _, offload := range []bool{false, true} {
		t.Run(fmt.Sprintf("offload=%v", offload), func(t *testing.T) {
			o := opts(new(toy), new(toy))
			o.MTU, o.Offload = 65535, offload
			p := tcptest.New(t, o)
			p.Trace()
			e := connect(t, p)
			send(t, e.active, e.server, random(4<<20))
			send(t, e.server, e.active, random(4<<20))
			e.close()
			if n := len(p.Packets()); n > 2000 {
				t.Errorf("%d packets for 8 MiB", n)
			}
		})
	}
}
