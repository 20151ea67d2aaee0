package tcp_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
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

func (g genericPayload) Len() int { return g.r.Len() }

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

// TestWindowOpensWhenTheBufferGrows: a window that was zero is advertised again without
// a probe, though the buffer grew meanwhile.
func TestWindowOpensWhenTheBufferGrows(t *testing.T) {
	for _, off := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", off), func(t *testing.T) {
			o := opts(new(toy), &toy{Off: off})
			o.Offload = true
			p := tcptest.New(t, o)
			slow := tcpip.TCPMinRTOOption(5 * time.Second)
			if err := p.A.SetTransportProtocolOption(tcp.ProtocolNumber, &slow); err != nil {
				t.Fatal(err)
			}
			e := connect(t, p)
			e.exchange(t, 500_000) // there is a round trip to go by
			b := random(6 << 20)   // more than the buffer may grow to
			errc := make(chan error, 1)
			go func() {
				_, err := e.active.Write(b)
				errc <- err
			}()
			stats := e.server.EP.Stats().(*tcp.Stats)
			waitFor(t, e.server.Queue, func() bool { return stats.ReceiveErrors.ZeroRcvWindowState.Value() > 0 })
			got := make([]byte, len(b))
			for at := 0; at < len(got); {
				n, err := e.server.Read(got[at:min(at+512, len(got))])
				if err != nil {
					t.Fatal(err)
				}
				at += n
			}
			if err := <-errc; err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, b) {
				t.Error("what was read differs")
			}
			if n := p.A.Stats().TCP.Timeouts.Value(); n != 0 {
				t.Errorf("%d timeouts, want none", n)
			}
			e.finish(t)
		})
	}
}
