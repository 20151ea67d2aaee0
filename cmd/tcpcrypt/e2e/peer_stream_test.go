package e2e

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// What can be wrong with the stream of frames, and what has to be put up with.

// A party is a program on one side and a peer's session on the other; either may have
// opened the connection.
type party struct {
	app  *net.TCPConn
	peer *wirepeer.Session
}

// A connector makes one more.
type connector func(t *testing.T, script wirepeer.Script) party

// bothRoles runs the test with the daemon as A and as B.
func bothRoles(t *testing.T, test func(t *testing.T, connect connector)) {
	t.Helper()
	bothRolesWith(t, everything(opportunistic, everyAlgorithm), test)
}

// bothRolesWith is bothRoles with that configuration.
func bothRolesWith(t *testing.T, config string, test func(t *testing.T, connect connector)) {
	t.Helper()
	t.Run("daemon is A", func(t *testing.T) {
		t.Parallel()
		o := newOutbound(t, config)
		test(t, func(t *testing.T, script wirepeer.Script) party {
			t.Helper()
			app, s := o.encrypted(t, script, wirepeer.Config{})
			return party{app, s}
		})
	})
	t.Run("daemon is B", func(t *testing.T) {
		t.Parallel()
		in := newInbound(t, config)
		test(t, func(t *testing.T, script wirepeer.Script) party {
			t.Helper()
			app, s := in.encrypted(t, script, wirepeer.Config{})
			return party{app, s}
		})
	})
}

func TestReservedBitsAndUrgentDataArePutUpWith(t *testing.T) {
	t.Parallel()
	bothRoles(t, func(t *testing.T, connect connector) {
		t.Helper()
		p := connect(t, wirepeer.Script{})
		urgent := 2
		for _, f := range []wirepeer.Frame{
			{Data: []byte("plain,")},
			{Data: []byte("cres,"), Cres: 0xfe},
			{Data: []byte("fres,"), Fres: 0xfc},
			{},
			{Data: []byte("urgent,"), Urgent: &urgent},
			{Data: []byte("rekeyed,"), Rekey: true, Cres: 0x80},
			{Fres: 0x80},
			{Data: []byte("end"), FIN: true, Fres: 0x04},
		} {
			p.peer.Send(f)
		}
		mustReadAll(t, p.app, []byte("plain,cres,fres,urgent,rekeyed,end"))
	})
}

func TestFramesOfEverySizeArrive(t *testing.T) {
	t.Parallel()
	bothRoles(t, func(t *testing.T, connect connector) {
		t.Helper()
		p := connect(t, wirepeer.Script{})
		data := streamBytes(3*wirepeer.MaxData + 60_000)
		rest := data
		for _, n := range []int{1, 0, wirepeer.MaxData, 2, wirepeer.MaxData, wirepeer.MaxData, 1448, 1449} {
			p.peer.Send(wirepeer.Frame{Data: rest[:n]})
			rest = rest[n:]
		}
		p.peer.Send(wirepeer.Frame{Data: rest, FIN: true})
		mustReadAll(t, p.app, data)
	})
}

// The program has to get what was right, in part or whole, and then a reset: never a
// wrong byte, never the end of file.
func TestWrongStreamsEndInAReset(t *testing.T) {
	t.Parallel()
	const before = "right so far"
	cases := []struct {
		name string
		send func(s *wirepeer.Session)
	}{
		{"flipped byte of ciphertext", func(s *wirepeer.Session) {
			b := s.Seal(wirepeer.Frame{Data: []byte("wrong")})
			b[5] ^= 0x10
			s.Conn.Write(b)
		}},
		{"flipped byte of the tag", func(s *wirepeer.Session) {
			b := s.Seal(wirepeer.Frame{Data: []byte("wrong")})
			b[len(b)-1] ^= 1
			s.Conn.Write(b)
		}},
		{"flipped reserved bit of control", func(s *wirepeer.Session) {
			b := s.Seal(wirepeer.Frame{Data: []byte("wrong")})
			b[0] ^= 0x40
			s.Conn.Write(b)
		}},
		{"rekey bit set on the way", func(s *wirepeer.Session) {
			b := s.Seal(wirepeer.Frame{Data: []byte("wrong")})
			b[0] ^= 1
			s.Conn.Write(b)
		}},
		{"replayed record", func(s *wirepeer.Session) {
			b := s.Seal(wirepeer.Frame{Data: []byte(before)})
			s.Conn.Write(b)
			s.Conn.Write(b)
		}},
		{"records swapped", func(s *wirepeer.Session) {
			x, y := s.Seal(wirepeer.Frame{Data: []byte("one")}), s.Seal(wirepeer.Frame{Data: []byte("two")})
			s.Conn.Write(append(y, x...))
		}},
		{"record left out", func(s *wirepeer.Session) {
			s.Seal(wirepeer.Frame{Data: []byte("one")})
			s.Send(wirepeer.Frame{Data: []byte("two")})
		}},
		{"FIN without FINp", func(s *wirepeer.Session) { s.Conn.WriteFIN(nil) }},
		{"FIN inside a frame", func(s *wirepeer.Session) {
			s.Conn.WriteFIN(s.Seal(wirepeer.Frame{Data: []byte("wrong"), FIN: true})[:20])
		}},
		{"FIN inside a frame's header", func(s *wirepeer.Session) { s.Conn.WriteFIN([]byte{0, 0}) }},
		{"bytes behind the FINp", func(s *wirepeer.Session) {
			b := s.Seal(wirepeer.Frame{FIN: true})
			s.Conn.Write(append(b, s.Seal(wirepeer.Frame{Data: []byte("wrong")})...))
		}},
		{"clen too small for a tag", func(s *wirepeer.Session) { s.Conn.Write(make([]byte, 3+15)) }},
		{"clen too small for flags", func(s *wirepeer.Session) { s.Conn.Write(append([]byte{0, 0, 16}, make([]byte, 16)...)) }},
		{"plaintext", func(s *wirepeer.Session) {
			// As a frame it has 21,588 bytes: "TT".
			s.Conn.Write([]byte("HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("wrong, ", 4000)))
		}},
		{"RST", func(s *wirepeer.Session) { s.Conn.Reset() }},
	}
	bothRoles(t, func(t *testing.T, connect connector) {
		t.Helper()
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				p := connect(t, wirepeer.Script{})
				p.peer.Send(wirepeer.Frame{Data: []byte(before)})
				mustRead(t, "program", p.app, before)
				c.send(p.peer)
				got, err := io.ReadAll(p.app)
				if !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("program read %q, then %v; want a reset", got, err)
				}
				if len(got) > 0 && string(got) != before { // the replayed record's first copy
					t.Errorf("program read %q", got)
				}
				if err := p.peer.Conn.Ended(soon(t)); !errors.Is(err, wirepeer.ErrReset) && !errors.Is(err, wirepeer.ErrAborted) {
					t.Errorf("peer: %v, want %v", err, wirepeer.ErrReset)
				}
			})
		}
	})
}

// An end in one direction leaves the other one open.
func TestHalfCloseOfEitherSide(t *testing.T) {
	t.Parallel()
	bothRoles(t, func(t *testing.T, connect connector) {
		t.Helper()
		t.Run("peer ends first", func(t *testing.T) {
			p := connect(t, wirepeer.Script{})
			p.peer.Send(wirepeer.Frame{Data: []byte("question"), FIN: true})
			mustReadAll(t, p.app, []byte("question"))
			for range 3 {
				mustWrite(t, "program", p.app, "answer")
				if got, err := p.peer.ReadData(soon(t), 6); string(got) != "answer" {
					t.Fatalf("peer read %q, %v", got, err)
				}
			}
			if err := p.app.Close(); err != nil {
				t.Fatal(err)
			}
			if got, err := p.peer.ReadData(soon(t), -1); err != nil || len(got) > 0 {
				t.Errorf("peer read %q, %v; want a proper end", got, err)
			}
		})
		t.Run("program ends first", func(t *testing.T) {
			p := connect(t, wirepeer.Script{})
			mustWrite(t, "program", p.app, "question")
			if err := p.app.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got, err := p.peer.ReadData(soon(t), -1); err != nil || string(got) != "question" {
				t.Errorf("peer read %q, %v; want it and a proper end", got, err)
			}
			for range 3 {
				p.peer.Send(wirepeer.Frame{Data: []byte("answer")})
				mustRead(t, "program", p.app, "answer")
			}
			p.peer.Send(wirepeer.Frame{FIN: true})
			mustEnd(t, "program", p.app)
		})
		t.Run("FIN goes with the last byte of the last frame", func(t *testing.T) {
			p := connect(t, wirepeer.Script{})
			if err := p.app.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if _, err := p.peer.ReadData(soon(t), -1); err != nil {
				t.Fatal(err)
			}
			fin := firstOf(p.peer.Conn, func(s *wirepeer.Traced) bool { return !s.Out && s.Flags.Has(wirepeer.FIN) })
			if len(fin.Payload) == 0 {
				t.Errorf("a FIN of its own: %v", &fin.Segment)
			}
		})
	})
}

func TestResetOfTheProgramReachesThePeer(t *testing.T) {
	t.Parallel()
	bothRoles(t, func(t *testing.T, connect connector) {
		t.Helper()
		p := connect(t, wirepeer.Script{})
		if err := errors.Join(p.app.SetLinger(0), p.app.Close()); err != nil {
			t.Fatal(err)
		}
		if err := p.peer.Conn.Ended(soon(t)); !errors.Is(err, wirepeer.ErrReset) {
			t.Errorf("peer: %v, want %v", err, wirepeer.ErrReset)
		}
	})
}

func TestRekeysAreFollowedAndAnswered(t *testing.T) {
	t.Parallel()
	bothRoles(t, func(t *testing.T, connect connector) {
		t.Helper()
		p := connect(t, wirepeer.Script{})
		p.peer.Send(wirepeer.Frame{Rekey: true})
		f, err := p.peer.Receive(soon(t)) // at once, with nothing to say
		if err != nil || !f.Rekey {
			t.Fatalf("peer got %+v, %v; want a frame with rekey = 1", f, err)
		}
		p.peer.Send(wirepeer.Frame{Rekey: true, Data: []byte("one")})
		p.peer.Send(wirepeer.Frame{Rekey: true, Data: []byte("two")})
		mustRead(t, "program", p.app, "onetwo")
		mustWrite(t, "program", p.app, "three")
		if got, err := p.peer.ReadData(soon(t), 5); string(got) != "three" {
			t.Fatalf("peer read %q, %v", got, err)
		}
		eventuallyGenerations(t, p.peer, 3)
		p.peer.Send(wirepeer.Frame{FIN: true})
		mustEnd(t, "program", p.app)
	})
}

// eventuallyGenerations reads frames until the daemon has changed its keys n times.
func eventuallyGenerations(t *testing.T, s *wirepeer.Session, n int) {
	t.Helper()
	for {
		_, received := s.Generations()
		if received >= n {
			if received > n {
				t.Errorf("%d rekeys answered, want %d", received, n)
			}
			return
		}
		if f, err := s.Receive(soon(t)); err != nil || len(f.Data) > 0 {
			t.Fatalf("after %d answers: %q, %v", received, f.Data, err)
		}
	}
}

// The program reads nothing, and the answers have to go out all the same.
func TestRekeysAreAnsweredWhileNobodyReads(t *testing.T) {
	t.Parallel()
	bothRoles(t, func(t *testing.T, connect connector) {
		t.Helper()
		p := connect(t, wirepeer.Script{})
		p.peer.SendData(streamBytes(50_000), 10_000)
		p.peer.Send(wirepeer.Frame{Rekey: true})
		p.peer.Send(wirepeer.Frame{Rekey: true})
		eventuallyGenerations(t, p.peer, 2)
		p.peer.Send(wirepeer.Frame{FIN: true})
		mustReadAll(t, p.app, streamBytes(50_000))
	})
}

// A peer that floods rekeys and reads nothing costs the daemon nothing, and once it
// reads, the answers are there: as many as rekeys.
func TestFloodedRekeysAreAllAnsweredInTheEnd(t *testing.T) {
	t.Parallel()
	const flood = 20_000
	bothRoles(t, func(t *testing.T, connect connector) {
		t.Helper()
		p := connect(t, wirepeer.Script{})
		p.peer.Conn.SetWindow(0)
		for range flood {
			p.peer.Send(wirepeer.Frame{Rekey: true})
		}
		p.peer.Send(wirepeer.Frame{Data: []byte("still here")})
		mustRead(t, "program", p.app, "still here")
		p.peer.Conn.SetWindow(65535)
		eventuallyGenerations(t, p.peer, flood)
		mustWrite(t, "program", p.app, "me too")
		if got, err := p.peer.ReadData(soon(t), 6); string(got) != "me too" {
			t.Errorf("peer read %q, %v", got, err)
		}
	})
}

// A peer that does not read holds its own connection up, and nobody else's.
func TestPeerThatStopsReadingIsWaitedFor(t *testing.T) {
	t.Parallel()
	bothRoles(t, func(t *testing.T, connect connector) {
		t.Helper()
		p := connect(t, wirepeer.Script{})
		p.peer.Conn.SetWindow(0)
		const size = 20_000_000 // more than all buffers on the way
		done := make(chan error, 1)
		go func() {
			_, err := io.Copy(p.app, stream(size))
			done <- errors.Join(err, p.app.CloseWrite())
		}()
		other := connect(t, wirepeer.Script{})
		other.peer.Send(wirepeer.Frame{Data: []byte("hello"), FIN: true})
		mustReadAll(t, other.app, []byte("hello"))
		select {
		case err := <-done:
			t.Fatalf("%d bytes were taken while the peer reads nothing, %v", size, err)
		default:
		}
		p.peer.Conn.SetWindow(65535)
		got, err := p.peer.ReadData(soon(t), -1)
		if err != nil || string(got) != string(streamBytes(size)) {
			t.Errorf("peer read %d bytes, %v; want %d and a proper end", len(got), err, size)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
