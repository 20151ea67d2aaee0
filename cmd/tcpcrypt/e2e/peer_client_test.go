package e2e

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// The daemon plays B here, and the peer is a client that is odd or wrong.

// nineBytes is half of a resumption identifier that nobody knows.
var nineBytes = []byte{1, 2, 3, 4, 5, 6, 7, 8, 9}

func TestOddClientsAreServed(t *testing.T) {
	t.Parallel()
	in := newInbound(t, everything(opportunistic, everyAlgorithm))
	eno := func(subs ...byte) wirepeer.Script { return wirepeer.Script{ENO: wirepeer.BuildENO(subs...)} }
	many := []wirepeer.Cipher{}
	for i := range 254 {
		many = append(many, wirepeer.Cipher(0x4000+i))
	}
	many = append(many, wirepeer.AES256GCM)
	cases := append(oddities(),
		odd{name: "loss of the daemon's segments", script: wirepeer.Script{In: losing(10)}},
		odd{name: "data in the SYN", script: wirepeer.Script{SYNData: []byte("never to be seen")}},
		odd{name: "reserved bits of the global suboption", script: eno(0x1c, 0x23)},
		odd{name: "global suboption of zero", script: eno(0x00, 0x23)},
		odd{name: "two global suboptions", script: eno(0x00, 0x01, 0x23)},
		odd{name: "unknown TEPs, with data", script: eno(0x25, 0x82, 0xe7, 1, 2, 3, 0x23, 0x6f)},
		odd{name: "experimental TEP beside", script: eno(0x20, 0x23)},
		odd{name: "resumption offered", script: eno(append([]byte{0x21, 0xa3}, nineBytes...)...)},
		odd{name: "resumption offered with a nonce", script: eno(append([]byte{0xa3, 1, 1, 1, 1, 1, 1, 1, 1}, nineBytes...)...)},
		odd{name: "resumption offered behind a length byte", script: eno(slices.Concat([]byte{0x88, 0xa3}, nineBytes, []byte{0x21})...)},
		odd{name: "resumption data too short", script: eno(0xa3, 1, 2, 3)},
		odd{name: "resumption data too long", script: eno(append([]byte{0xa3}, make([]byte, 18)...)...)},
		odd{name: "application-aware bit", script: eno(0x02, 0x23)},
		odd{name: "ENO in every segment", script: wirepeer.Script{Mark: func(*wirepeer.Segment, bool) bool { return true }}},
		odd{name: "unknown ciphers among known", cfg: wirepeer.Config{Ciphers: []wirepeer.Cipher{0x7777, wirepeer.AES128GCM, 0}}},
		odd{name: "255 ciphers, the last one known", cfg: wirepeer.Config{Ciphers: many}},
		odd{name: "a cipher twice", cfg: wirepeer.Config{Ciphers: []wirepeer.Cipher{wirepeer.AES256GCM, wirepeer.AES256GCM}}},
	)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			app, s := in.encrypted(t, c.script, c.cfg)
			up, down := c.sizes()
			// Here the peer is the client: what goes up is the peer's.
			s.SendData(up, wirepeer.MaxData)
			s.Send(wirepeer.Frame{FIN: true})
			mustReadAll(t, app, up)
			done := make(chan error, 1)
			go func() {
				_, err := app.Write(down)
				done <- errors.Join(err, app.Close())
			}()
			if got, err := s.ReadData(soon(t), -1); err != nil || !bytes.Equal(got, down) {
				t.Fatalf("peer read %d bytes, %v; want %d and the end", len(got), err, len(down))
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if got := in.daemon.conn(t, "the session id", bySession(s)); got.Resumed {
				t.Errorf("%v: resumed, and there was nothing to resume", got)
			}
			synack := firstOf(s.Conn, func(seg *wirepeer.Traced) bool { return !seg.Out })
			if own := s.Conn.Trace()[0]; synack.Ack != own.Seq+1 {
				t.Errorf("SYN-ACK acknowledges SYN + %d, want + 1", synack.Ack-own.Seq)
			}
			if eno := synack.ENO(); len(eno) != 4 || eno[2]&1 != 1 || eno[3]&0x80 != 0 {
				t.Errorf("SYN-ACK answers with %x, want b = 1 and one TEP with v = 0", eno)
			}
		})
	}
}

// Data of a SYN with ENO is nobody's, but the same bytes sent again are ordinary data.
func TestDataOfTheSYNCountsWhenSentAgain(t *testing.T) {
	t.Parallel()
	in := newInbound(t, everything(opportunistic, ""))
	t.Run("encrypted", func(t *testing.T) {
		app, s := in.encrypted(t, wirepeer.Script{SYNData: []byte{0x15, 0x10, 0x1a, 0x0e}}, wirepeer.Config{})
		s.Send(wirepeer.Frame{Data: []byte("hello"), FIN: true})
		mustReadAll(t, app, []byte("hello"))
	})
	t.Run("ENO fails", func(t *testing.T) {
		peer := in.dial(t, false, wirepeer.Script{SYNData: []byte("hello"), ENO: wirepeer.BuildENO(0x6f)})
		app := accept(t, in.service)
		peer.WriteFIN([]byte("hello"))
		mustReadAll(t, app, []byte("hello"))
	})
}

func TestClientsWithoutUsableENOAreServedInClear(t *testing.T) {
	t.Parallel()
	in := newInbound(t, everything(opportunistic, `teps = ["curve25519", "p256"]`))
	x := wirepeer.BuildENO(0x23)
	for _, c := range []struct {
		name   string
		script wirepeer.Script
		reason string
		answer bool // the SYN-ACK has ENO
	}{
		{"no ENO", wirepeer.Script{}, "no-eno", false},
		{"two ENO options", wirepeer.Script{ENO: slices.Concat(x, x)}, "no-eno", false},
		{"ill-formed: length byte at the end", wirepeer.Script{ENO: wirepeer.BuildENO(0x23, 0x80)}, "no-eno", false},
		{"ill-formed: length byte before v = 0", wirepeer.Script{ENO: wirepeer.BuildENO(0x80, 0x23)}, "no-eno", false},
		{"ill-formed: option runs past the header", wirepeer.Script{ENO: []byte{69, 30, 0x23, 0}}, "no-eno", false},
		{"wrong role bit", wirepeer.Script{ENO: wirepeer.BuildENO(0x01, 0x23)}, "same-role", false},
		{"TEP that the daemon does not have", wirepeer.Script{ENO: wirepeer.BuildENO(0x24)}, "no-common-tep", false},
		{"no TEP", wirepeer.Script{ENO: wirepeer.BuildENO()}, "no-common-tep", false},
		{"unknown TEPs only", wirepeer.Script{ENO: wirepeer.BuildENO(0x25, 0x82, 0xe7, 1, 2, 3)}, "no-common-tep", false},
		{"repeated TEP", wirepeer.Script{ENO: wirepeer.BuildENO(0x23, 0x23)}, "no-common-tep", false},
		{"ENO stripped from the ACK", wirepeer.Script{ENO: x, Mark: func(*wirepeer.Segment, bool) bool { return false }}, "stripped", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			peer := in.dial(t, false, c.script)
			synack := firstOf(peer, func(seg *wirepeer.Traced) bool { return !seg.Out })
			if synack.HasENO() != c.answer {
				t.Errorf("SYN-ACK has ENO: %t, want %t: %v", synack.HasENO(), c.answer, &synack.Segment)
			}
			app := accept(t, in.service)
			peer.Write([]byte("clear up"))
			mustRead(t, "service", app, "clear up")
			mustWrite(t, "service", app, "clear down")
			if got, err := peer.Read(soon(t), 10); string(got) != "clear down" {
				t.Errorf("peer read %q, %v", got, err)
			}
			peer.WriteFIN(nil)
			mustEnd(t, "service", app)
			got := in.daemon.conn(t, "the connection", from(peer.Local()))
			if got.Encrypted || !is(got.Reason, c.reason) || got.SessionID != nil {
				t.Errorf("tcpcrypt conns says %v, want in clear because of %s", got, c.reason)
			}
		})
	}
}

func TestClientsWithWrongKeyExchangeAreReset(t *testing.T) {
	t.Parallel()
	in := newInbound(t, everything(opportunistic, everyAlgorithm))
	edit := func(f func(b []byte) []byte) wirepeer.Config { return wirepeer.Config{EditInit: f} }
	type wrong struct {
		name string
		cfg  wirepeer.Config
	}
	cases := []wrong{
		{"no common cipher", wirepeer.Config{Ciphers: []wirepeer.Cipher{0x7777}}},
		{"no cipher", wirepeer.Config{Ciphers: []wirepeer.Cipher{}}},
		{"nciphers past the message", edit(func(b []byte) []byte { b[8] = 200; return b })},
		{"wrong magic", edit(func(b []byte) []byte { b[0] ^= 1; return b })},
		{"magic of Init2", edit(func(b []byte) []byte { copy(b, []byte{0x09, 0x71, 0x05, 0xe0}); return b })},
		{"message_len 8", edit(func(b []byte) []byte { copy(b[4:], []byte{0, 0, 0, 8}); return b })},
		{"message_len one too small", edit(func(b []byte) []byte { b[7]--; return b })},
		{"message_len of four gigabytes", edit(func(b []byte) []byte { copy(b[4:], []byte{0xff, 0xff, 0xff, 0xff}); return b })},
		{"text instead", edit(func([]byte) []byte { return []byte("GET / HTTP/1.1\r\nHost: example\r\n\r\n") })},
	}
	for _, bad := range badPublic() {
		cases = append(cases, wrong{bad.name, wirepeer.Config{TEPs: []wirepeer.TEP{bad.tep}, Public: bad.key}})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			peer := in.dial(t, false, wirepeer.Script{ENO: c.cfg.Offer()})
			_, _ = wirepeer.Handshake(soon(t), peer, c.cfg) // what our own side makes of it does not matter
			if err := peer.Ended(soon(t)); !errors.Is(err, wirepeer.ErrReset) {
				t.Errorf("peer: %v, want %v", err, wirepeer.ErrReset)
			}
		})
	}
	t.Run("FIN inside Init1", func(t *testing.T) {
		peer := in.dial(t, false, wirepeer.Script{ENO: wirepeer.Config{}.Offer()})
		peer.WriteFIN([]byte{0x15, 0x10})
		if err := peer.Ended(soon(t)); !errors.Is(err, wirepeer.ErrReset) {
			t.Errorf("peer: %v, want %v", err, wirepeer.ErrReset)
		}
	})
	// Whatever of this the service has got to see is a connection that was reset
	// without a byte; the last one is good.
	peer := in.dial(t, false, wirepeer.Script{ENO: wirepeer.Config{}.Offer()})
	s, err := wirepeer.Handshake(soon(t), peer, wirepeer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s.Send(wirepeer.Frame{Data: []byte("good"), FIN: true})
	for {
		got, err := io.ReadAll(accept(t, in.service))
		if err == nil && string(got) == "good" {
			break
		}
		if len(got) > 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("service read %q, %v; want a reset", got, err)
		}
	}
}

func TestEndlessInitOfAClientIsGivenUp(t *testing.T) {
	t.Parallel()
	in := newInbound(t, everything(opportunistic, ""))
	for _, c := range []struct {
		name  string
		begin []byte
	}{
		{"nothing at all", nil},
		{"message_len at the bound, and silence", []byte{0x15, 0x10, 0x1a, 0x0e, 0, 0, 0x40, 0, 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			peer := in.dial(t, false, wirepeer.Script{ENO: wirepeer.Config{}.Offer()})
			peer.Write(c.begin)
			if err := peer.Ended(soon(t)); !errors.Is(err, wirepeer.ErrReset) {
				t.Errorf("peer: %v, want %v", err, wirepeer.ErrReset)
			}
		})
	}
}

// A segment that belongs to nothing may be the tail of an encrypted connection.
func TestStraySegmentsAreReset(t *testing.T) {
	t.Parallel()
	in := newInbound(t, everything(opportunistic, ""))
	stray, err := in.peers.Open(netip.AddrPortFrom(peerAddr(false, 1), 0), netip.AddrPortFrom(in.b.Addr4(), 80), wirepeer.Script{Out: func(s *wirepeer.Segment) []*wirepeer.Segment {
		s.Flags, s.Ack = wirepeer.ACK, 12345
		s.Payload = []byte("tail of something")
		return []*wirepeer.Segment{s}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stray.Seen(soon(t), "RST", func(s *wirepeer.Traced) bool { return !s.Out && s.Flags.Has(wirepeer.RST) }); err != nil {
		t.Errorf("a segment of no connection: %v", err)
	}
}
