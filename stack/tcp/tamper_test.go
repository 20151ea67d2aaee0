package tcp_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

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
			codecOf(t, e.active).lenient.Store(cut > 0) // inside a record nobody may be
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
