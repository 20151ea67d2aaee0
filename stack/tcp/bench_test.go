package tcp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

// BenchmarkBulk sends one stream over a link in memory: upstream's TCP, the same with an
// extension that declines, and the record layer with a cipher that costs nearly nothing
// (the toy's XOR is written in Go, so it is copied here without) and so shows its own
// cost. stack.BenchmarkBulkENO has real ciphers.
func BenchmarkBulk(b *testing.B) {
	for _, bm := range []struct {
		name string
		ext  func() tcp.Extension
	}{
		{"upstream", func() tcp.Extension { return nil }},
		{"declined", func() tcp.Extension { return &toy{Off: true} }},
		{"records", func() tcp.Extension { return nullExtension{} }},
	} {
		for _, offload := range []bool{true, false} {
			b.Run(fmt.Sprintf("tcp=%s/offload=%v", bm.name, offload), func(b *testing.B) {
				o := tcptest.Options{Offload: offload}
				if ext := bm.ext(); ext != nil {
					o.A, o.B = tcp.NewProtocolWithExtension(ext), tcp.NewProtocolWithExtension(ext)
				}
				p := tcptest.New(b, o)
				bulk(b, p)
			})
		}
	}
}

// bulk writes b.N chunks one way.
func bulk(b *testing.B, p *tcptest.Pair) {
	b.Helper()
	const chunk = 128 << 10
	e := connect(b, p)
	errc := make(chan error, 1)
	go func() {
		buf := make([]byte, chunk)
		for {
			if _, err := e.server.Read(buf); err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				errc <- err
				return
			}
		}
	}()
	data := make([]byte, chunk)
	b.SetBytes(chunk)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := e.active.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	if err := e.active.CloseWrite(); err != nil {
		b.Fatal(err)
	}
	if err := <-errc; err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	e.close()
}

// nullExtension encrypts with nothing: toy's negotiation, and records that are copied.
type nullExtension struct{}

func (nullExtension) Active(tcp.Conn) tcp.Negotiator { return &nullNeg{} }

func (nullExtension) Cookie(tcp.Conn) error { return nil }

func (nullExtension) Passive(tcp.Conn, []byte) tcp.Negotiator { return &nullNeg{} }

type nullNeg struct{}

func (*nullNeg) SYNOption(int, int) []byte { return []byte{toyKind, 4, 'x', 'x'} }
func (*nullNeg) ReceiveSYN([]byte)         {}
func (*nullNeg) NonSYNOption() []byte      { return []byte{toyKind, 2} }
func (*nullNeg) Abandon()                  {}
func (*nullNeg) Misled() []byte            { return nil }

func (*nullNeg) ReceiveACK([]byte, bool) (tcp.Session, error) { return nullSession{}, nil }

type nullSession struct{}

func (nullSession) Handshake(context.Context, tcp.Stream) (tcp.Codec, error) { return nullCodec{}, nil }
func (nullSession) Close()                                                   {}

type nullCodec struct{}

func (nullCodec) HeaderLen() int                      { return 3 }
func (nullCodec) Overhead() int                       { return 3 }
func (nullCodec) MaxData() int                        { return 65535 }
func (nullCodec) Owed() int                           { return 0 }
func (nullCodec) Rekey()                              {}
func (nullCodec) Generations() (uint64, uint64)       { return 0, 0 }
func (nullCodec) EndOfStream() error                  { return io.ErrUnexpectedEOF }
func (nullCodec) RecordLen(h []byte) (int, error)     { return 3 + int(h[0])<<8 + int(h[1]), nil }
func (nullCodec) Open(r []byte) ([]byte, bool, error) { return r[3:], r[2] == toyLast, nil }
func (nullCodec) Seal(dst, data []byte, last bool) ([]byte, error) {
	flags := byte(0)
	if last {
		flags = toyLast
	}
	dst = append(dst, byte(len(data)>>8), byte(len(data)), flags)
	return append(dst, data...), nil
}

// TestRecordLayerAllocatesNothing per record, over what TCP does: the same bytes, once
// through upstream's endpoint and once through records.
func TestRecordLayerAllocatesNothing(t *testing.T) {
	measure := func(ext tcp.Extension, size int) float64 {
		o := tcptest.Options{Offload: true}
		if ext != nil {
			o.A, o.B = tcp.NewProtocolWithExtension(ext), tcp.NewProtocolWithExtension(ext)
		}
		p := tcptest.New(t, o)
		e := connect(t, p)
		data, buf := make([]byte, size), make([]byte, size)
		var r bytes.Reader
		w := tcpip.SliceWriter(buf)
		entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents)
		e.server.Queue.EventRegister(&entry)
		defer e.server.Queue.EventUnregister(&entry)
		round := func() {
			r.Reset(data)
			if n, err := e.active.EP.Write(&r, tcpip.WriteOptions{}); err != nil || int(n) != size {
				t.Fatalf("write: %d, %s", n, err)
			}
			for got := 0; got < size; {
				w = buf
				res, err := e.server.EP.Read(&w, tcpip.ReadOptions{})
				if _, block := err.(*tcpip.ErrWouldBlock); block {
					<-readable
				} else if err != nil {
					t.Fatalf("read: %s", err)
				}
				got += res.Count
			}
		}
		for range 200 {
			round() // fills pools
		}
		n := testing.AllocsPerRun(500, round)
		e.close()
		return n
	}
	for _, size := range []int{100, 1400, 100_000} {
		plain, records := measure(nil, size), measure(nullExtension{}, size)
		if records > plain+poolSlack {
			t.Errorf("%d bytes: %.0f allocations with records, %.0f without", size, records, plain)
		}
	}
}

// BenchmarkPingPong is the latency of one byte and its answer.
func BenchmarkPingPong(b *testing.B) {
	for _, encrypted := range []bool{false, true} {
		b.Run(fmt.Sprintf("records=%v", encrypted), func(b *testing.B) {
			var o tcptest.Options
			if encrypted {
				o.A, o.B = tcp.NewProtocolWithExtension(nullExtension{}), tcp.NewProtocolWithExtension(nullExtension{})
			}
			e := connect(b, tcptest.New(b, o))
			go func() {
				_, _ = io.Copy(e.server, e.server) // ends with the connection
				e.server.Close()
			}()
			one := make([]byte, 1)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if _, err := e.active.Write(one); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(e.active, one); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			e.active.Close()
		})
	}
}

// BenchmarkConnect opens and closes connections one after the other.
func BenchmarkConnect(b *testing.B) {
	for _, encrypted := range []bool{false, true} {
		b.Run(fmt.Sprintf("records=%v", encrypted), func(b *testing.B) {
			var o tcptest.Options
			if encrypted {
				o.A, o.B = tcp.NewProtocolWithExtension(nullExtension{}), tcp.NewProtocolWithExtension(nullExtension{})
			}
			p := tcptest.New(b, o)
			none := tcpip.TCPTimeWaitTimeoutOption(0)
			for _, s := range []*stack.Stack{p.A, p.B} {
				if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, &none); err != nil {
					b.Fatal(err)
				}
			}
			l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, port), 100)
			defer l.Close()
			b.ReportAllocs()
			for b.Loop() {
				c := p.NewConn(p.A, tcptest.B4)
				if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, port)); err != nil {
					b.Fatal(err)
				}
				s, err := l.Accept()
				if err := errors.Join(err, c.WaitReady(), s.WaitReady()); err != nil {
					b.Fatal(err)
				}
				c.Close()
				s.Close()
			}
		})
	}
}
