package conformance

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

type frame = wirepeer.Frame

// TestRFC8548_3_6_OffsetsAndBits: Init messages count, and what is reserved is 0.
func TestRFC8548_3_6_OffsetsAndBits(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, crypto(tcpcrypt.Options{AEADs: tcpcrypt.AEADs()}), script{}, config{})
		want := uint64(74)
		if active {
			want = 79
		}
		for _, data := range []string{"one", "two two"} {
			e.write(data)
			f := e.frame()
			if f.Offset != want || string(f.Data) != data || f.Cres != 0 || f.Fres != 0 || f.Rekey || f.FIN || f.Urgent != nil {
				t.Errorf("%+v, want offset %d", f, want)
			}
			want += uint64(3 + 1 + len(data) + 16)
		}
	})
}

func TestRFC8548_4_2_ReservedBitsAreIgnored(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, opts{}, script{}, config{})
		e.s.Send(frame{Data: []byte("x"), Cres: 0xfe, Fres: 0xfc})
		e.read("x")
		e.talk()
	})
}

// TestRFC8548_3_6_AlteredFrameAborts: every part of it, reserved bits too.
func TestRFC8548_3_6_AlteredFrameAborts(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		for _, at := range []int{0, 3, 5, -1} {
			for _, bit := range []byte{0x02, 0x80} {
				e := newRig(t).open(active, opts{}, script{}, config{})
				b := e.s.Seal(frame{Data: []byte("some data")})
				if at < 0 {
					at += len(b)
				}
				b[at] ^= bit
				e.peer.Write(b)
				e.aborted(tcpcrypt.ErrAuth)
			}
		}
	})
}

func TestRFC8548_3_6_ReplayedFrameAborts(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, opts{}, script{}, config{})
		b := e.s.Seal(frame{Data: []byte("x")})
		e.peer.Write(b)
		e.read("x")
		e.peer.Write(b)
		e.aborted(tcpcrypt.ErrAuth)
	})
}

func TestRFC8548_4_2_ShortFrameAborts(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		for _, clen := range []byte{0, 15, 16} {
			e := newRig(t).open(active, opts{}, script{}, config{})
			e.peer.Write(append([]byte{0, 0, clen}, make([]byte, clen)...))
			e.aborted(tcpcrypt.ErrMalformed)
		}
	})
}

func TestRFC8548_4_2_SmallestAndLargestFrame(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, opts{}, script{}, config{})
		if b := e.s.Seal(frame{}); len(b) != 20 {
			t.Errorf("%d bytes", len(b))
		} else {
			e.peer.Write(b)
		}
		big := string(bytes.Repeat([]byte("y"), wirepeer.MaxData))
		e.s.Send(frame{Data: []byte(big)})
		e.read(big)
	})
}

// TestRFC8548_3_6_RetransmissionsRepeatTheBytes: else a nonce would cover two texts.
func TestRFC8548_3_6_RetransmissionsRepeatTheBytes(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		var mu sync.Mutex
		lose := false
		copies := map[uint32][][]byte{}
		e := newRig(t).open(active, opts{}, script{In: func(s *wirepeer.Segment) bool {
			mu.Lock()
			defer mu.Unlock()
			if !lose || len(s.Payload) == 0 {
				return true
			}
			copies[s.Seq] = append(copies[s.Seq], s.Payload)
			return len(copies[s.Seq]) > 1
		}}, config{})
		mu.Lock()
		lose = true
		mu.Unlock()
		e.write("first")
		e.write("second")
		if got, err := e.s.ReadData(e.ctx, 11); string(got) != "firstsecond" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		mu.Lock()
		defer mu.Unlock()
		for seq, c := range copies {
			for _, again := range c[1:] {
				if n := min(len(c[0]), len(again)); !bytes.Equal(c[0][:n], again[:n]) {
					t.Errorf("seq %d: other bytes", seq)
				}
			}
		}
	})
}

func TestRFC8548_3_7_FINpOnTheLastFrameWithFIN(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, opts{}, script{}, config{})
		e.write("data")
		if err := e.app.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		var last frame
		for !last.FIN {
			last = e.frame()
		}
		if err := e.peer.Ended(e.ctx); err != nil {
			t.Fatal(err)
		}
		if n := len(e.peer.Buffered()); n != 0 {
			t.Errorf("%d bytes behind FINp", n)
		}
		for _, s := range e.ours() {
			if s.Flags.Has(wirepeer.FIN) && len(s.Payload) == 0 {
				t.Errorf("FIN without the last frame: %v", &s)
			}
		}
		e.s.Send(frame{Data: []byte("the other way goes on")})
		e.read("the other way goes on")
	})
}

// TestRFC8548_3_7_EndOfFileIsFINp: neither later nor earlier.
func TestRFC8548_3_7_EndOfFileIsFINp(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, opts{}, script{}, config{})
		e.peer.Write(e.s.Seal(frame{Data: []byte("x"), FIN: true}))
		e.read("x")
		if n, err := e.app.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("%d bytes, %v; want EOF", n, err)
		}
		e.write("the other way goes on")
		if f := e.frame(); len(f.Data) == 0 {
			t.Error("no data")
		}
	})
}

func TestRFC8548_3_7_TruncationIsAnError(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		for name, end := range map[string]func(e *end) []byte{
			"between frames":  func(*end) []byte { return nil },
			"inside a header": func(e *end) []byte { return e.s.Seal(frame{Data: []byte("x")})[:2] },
			"inside a frame":  func(e *end) []byte { return e.s.Seal(frame{Data: []byte("x"), FIN: true})[:19] },
		} {
			t.Run(name, func(t *testing.T) {
				e := newRig(t).open(active, opts{}, script{}, config{})
				e.peer.WriteFIN(end(e))
				n, err := e.app.Read(make([]byte, 9))
				if n != 0 || !errors.Is(err, tcpcrypt.ErrTruncated) && !errors.Is(err, tcp.ErrTruncated) || errors.Is(err, io.EOF) {
					t.Errorf("%d bytes, %v", n, err)
				}
				e.reset()
			})
		}
	})
}

func TestRFC8548_3_7_BytesBehindFINpAbort(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, opts{}, script{}, config{})
		e.peer.Write(append(e.s.Seal(frame{FIN: true}), 0))
		_, _ = e.app.Read(make([]byte, 1))
		e.reset()
	})
}

func TestRFC8548_3_7_UrgentDataIsInLine(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, opts{}, script{Out: func(s *wirepeer.Segment) []*wirepeer.Segment {
			p := *s // TCP's own urgent pointer is not trusted
			if len(s.Payload) > 0 {
				p.Flags, p.Urgent = p.Flags|wirepeer.URG, 3
			}
			return []*wirepeer.Segment{&p}
		}}, config{})
		for _, urgent := range []int{0, 2, 65535} {
			e.s.Send(frame{Data: []byte("urgent"), Urgent: &urgent})
			e.read("urgent")
		}
		e.talk()
	})
}

func TestRFC8548_3_8_RekeyIsAnsweredAtOnce(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, opts{}, script{}, config{})
		for range 3 { // the application neither reads nor writes
			e.s.Send(frame{Rekey: true})
			if f := e.frame(); !f.Rekey || len(f.Data) != 0 {
				t.Fatalf("answer %+v", f)
			}
		}
		e.write("x")
		if f := e.frame(); f.Rekey || string(f.Data) != "x" {
			t.Errorf("%+v", f)
		}
		e.talk()
	})
}

// TestRFC8548_3_8_RekeyWithDataAndFlood: one answer for each, with whatever goes out.
func TestRFC8548_3_8_RekeyWithDataAndFlood(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		const n = 200
		e := newRig(t).open(active, opts{}, script{}, config{})
		for range n {
			e.s.Send(frame{Rekey: true, Data: []byte("z")})
		}
		e.read(string(bytes.Repeat([]byte("z"), n)))
		for i := range n {
			if f := e.frame(); !f.Rekey {
				t.Fatalf("frame %d: %+v", i, f)
			}
		}
		e.talk()
	})
}

func TestRFC8548_3_8_NoAnswerBehindFINp(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, opts{}, script{}, config{})
		if err := e.app.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if f := e.frame(); !f.FIN {
			t.Fatalf("%+v", f)
		}
		e.s.Send(frame{Rekey: true, Data: []byte("x")})
		e.read("x")
		e.s.Send(frame{Data: []byte("y"), FIN: true})
		e.read("y")
		if _, err := e.app.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("%v, want EOF", err)
		}
		if err := e.peer.Ended(e.ctx); err != nil || len(e.peer.Buffered()) != 0 {
			t.Errorf("%v, %d bytes behind FINp", err, len(e.peer.Buffered()))
		}
	})
}

// TestRFC8548_3_8_InitiatesByBudget: the first frame under new keys says so, others do
// not; with data we may run ahead of a peer that does not answer.
func TestRFC8548_3_8_InitiatesByBudget(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, crypto(tcpcrypt.Options{MaxKeyFrames: 2}), script{}, config{})
		for i := range 7 {
			e.write("x")
			if f := e.frame(); f.Rekey != (i == 2 || i == 4 || i == 6) || string(f.Data) != "x" {
				t.Errorf("frame %d: %+v", i, f)
			}
		}
	})
}

// TestRFC8548_3_8_NoEmptyRekeyWhileUnanswered: the last frame, empty, keeps its key.
func TestRFC8548_3_8_NoEmptyRekeyWhileUnanswered(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, crypto(tcpcrypt.Options{MaxKeyFrames: 1}), script{}, config{})
		e.write("x")
		e.frame()
		e.write("y")
		if f := e.frame(); !f.Rekey {
			t.Fatalf("%+v", f)
		}
		_ = e.app.CloseWrite()
		if f := e.frame(); f.Rekey || !f.FIN {
			t.Errorf("%+v", f)
		}
	})
}

// TestRFC8548_3_8_CrossingRekeysNeedNoAnswer: each has reached the other's generation.
func TestRFC8548_3_8_CrossingRekeysNeedNoAnswer(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, crypto(tcpcrypt.Options{MaxKeyFrames: 3}), script{}, config{})
		for i := range 4 {
			e.write("x")
			if f := e.frame(); f.Rekey != (i == 3) {
				t.Fatalf("frame %d: %+v", i, f)
			}
		}
		e.s.Send(frame{Rekey: true, Data: []byte("z")})
		e.read("z")
		e.write("x")
		if f := e.frame(); f.Rekey || string(f.Data) != "x" {
			t.Errorf("answered: %+v", f)
		}
		e.talk()
	})
}

// TestRFC8548_3_9_TCPKeepAliveIsAnswered: liveness of TCP alone.
func TestRFC8548_3_9_TCPKeepAliveIsAnswered(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, opts{}, script{}, config{})
		e.talk()
		before := len(e.ours())
		e.peer.KeepAlive()
		var n int
		if _, err := e.peer.Seen(e.ctx, "an answer", func(s *wirepeer.Traced) bool {
			if !s.Out {
				n++
			}
			return n > before
		}); err != nil {
			t.Error(err)
		}
		e.talk()
	})
}

// TestRFC8548_3_8_InitiatesOnRequest: at once, in an empty frame, and not again in one
// before the peer has answered.
func TestRFC8548_3_8_InitiatesOnRequest(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, opts{}, script{}, config{})
		if err := e.app.Rekey(); err != nil {
			t.Fatal(err)
		}
		if f := e.frame(); !f.Rekey || len(f.Data) != 0 {
			t.Fatalf("%+v", f)
		}
		if err := e.app.Rekey(); err != nil { // waits for data, or for the answer
			t.Fatal(err)
		}
		e.write("x")
		if f := e.frame(); !f.Rekey || string(f.Data) != "x" {
			t.Errorf("%+v", f)
		}
		e.s.Send(frame{Rekey: true})
		e.s.Send(frame{Rekey: true, Data: []byte("y")})
		e.read("y")
		e.write("z") // nothing is owed
		if f := e.frame(); f.Rekey || string(f.Data) != "z" {
			t.Errorf("%+v", f)
		}
		if sec := e.security(); sec.GenerationSent != 2 || sec.GenerationReceived != 2 {
			t.Errorf("generations %d, %d; want 2, 2", sec.GenerationSent, sec.GenerationReceived)
		}
	})
}
