package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// The daemon plays A here, and the peer is a server that is odd or wrong.

// An odd is what a peer does that the daemon has to put up with.
type odd struct {
	name   string
	script wirepeer.Script
	cfg    wirepeer.Config
	size   int // bytes each way; 0: 100,000
}

func initTail(n int) []byte { return bytes.Repeat([]byte{0x15}, n) }

// oddities are the same for servers and clients.
func oddities() []odd {
	return []odd{
		{name: "Init split into single bytes", cfg: wirepeer.Config{SendInit: func(c *wirepeer.Conn, b []byte) {
			c.SetSegmentSize(1)
			for _, x := range b {
				c.Write([]byte{x})
			}
		}}, size: 5000},
		{name: "one-byte segments", script: wirepeer.Script{SegmentSize: 1}, size: 20_000},
		{name: "segments of seven bytes", script: wirepeer.Script{SegmentSize: 7}, size: 50_000},
		{name: "loss", script: wirepeer.Script{Out: wirepeer.Lossy(5, 0)}},
		{name: "reordering", script: wirepeer.Script{Out: wirepeer.Lossy(0, 3)}},
		{name: "loss and reordering", script: wirepeer.Script{Out: wirepeer.Lossy(7, 3)}},
		{name: "doubled segments", script: wirepeer.Script{Out: func(s *wirepeer.Segment) []*wirepeer.Segment { return []*wirepeer.Segment{s, s} }}},
		{name: "ignored bytes behind Init", cfg: wirepeer.Config{InitTail: initTail(300)}},
		{name: "ignored bytes up to the bound", cfg: wirepeer.Config{InitTail: initTail(16_000)}},
		{name: "tiny maximum segment size", script: wirepeer.Script{MSS: 200}, size: 50_000},
		{name: "small window", script: wirepeer.Script{Window: 2000}, size: 50_000},
		{name: "timestamps, SACK and window scale", script: wirepeer.Script{Timestamps: true, SACKPermitted: true, WindowScale: 5}},
		{name: "keys of P-521 in small segments", script: wirepeer.Script{SegmentSize: 10}, cfg: wirepeer.Config{TEPs: []wirepeer.TEP{wirepeer.P521}}, size: 10_000},
	}
}

func (o odd) sizes() (up, down []byte) {
	n := o.size
	if n == 0 {
		n = 100_000
	}
	return streamBytes(n), streamBytes(n)
}

// losing drops some of the daemon's segments too, each once.
func losing(every int) func(s *wirepeer.Segment) bool {
	count := 0
	return func(s *wirepeer.Segment) bool {
		if len(s.Payload) > 0 {
			count++
		}
		return len(s.Payload) == 0 || count%every != 0
	}
}

func TestOddServersAreServed(t *testing.T) {
	t.Parallel()
	o := newOutbound(t, everything(opportunistic, everyAlgorithm))
	cases := append(oddities(),
		odd{name: "loss of the daemon's segments", script: wirepeer.Script{In: losing(10)}},
		odd{name: "data in the SYN-ACK", script: wirepeer.Script{SYNData: []byte("never to be seen")}},
		odd{name: "reserved bits of the global suboption", script: wirepeer.Script{ENO: wirepeer.BuildENO(0x1d, 0x23)}},
		odd{name: "global suboption last", script: wirepeer.Script{ENO: wirepeer.BuildENO(0x23, 0x01)}},
		odd{name: "two global suboptions", script: wirepeer.Script{ENO: wirepeer.BuildENO(0x01, 0x00, 0x23)}},
		odd{name: "several TEPs", script: wirepeer.Script{ENO: wirepeer.BuildENO(0x01, 0x21, 0x24, 0x23)}},
		odd{name: "unknown TEPs, with data", script: wirepeer.Script{ENO: wirepeer.BuildENO(0x01, 0x23, 0x25, 0x82, 0xe7, 1, 2, 3, 0x6f)}},
		odd{name: "resumption that nobody offered, beside a TEP", script: wirepeer.Script{ENO: append(wirepeer.BuildENO(0x01, 0x23, 0xa4), make([]byte, 9)...)}},
		odd{name: "ENO in every segment", script: wirepeer.Script{Mark: func(*wirepeer.Segment, bool) bool { return true }}},
		odd{name: "application-aware bit", script: wirepeer.Script{ENO: wirepeer.BuildENO(0x03, 0x23)}},
	)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.script.ENO != nil {
				fixLength(c.script.ENO)
				c.script.Answer = func(*wirepeer.Segment) []byte { return c.script.ENO }
			}
			app, s := o.encrypted(t, c.script, c.cfg)
			up, down := c.sizes()
			exchange(t, app, s, up, down)
			o.daemon.conn(t, "the session id", bySession(s))
			if c.script.SYNData != nil {
				first := firstOf(s.Conn, func(seg *wirepeer.Traced) bool { return !seg.Out && !seg.Flags.Has(wirepeer.SYN) })
				if own := s.Conn.Trace()[1]; first.Ack != own.Seq+1 {
					t.Errorf("the SYN-ACK's data was acknowledged: ack is SYN-ACK + %d, want + 1", first.Ack-own.Seq)
				}
			}
		})
	}
}

// fixLength makes an option's length byte right.
func fixLength(option []byte) { option[1] = byte(len(option)) }

// firstOf returns the first segment of the trace that matches; an empty one if none.
func firstOf(c *wirepeer.Conn, match func(s *wirepeer.Traced) bool) wirepeer.Traced {
	trace := c.Trace()
	if i := slices.IndexFunc(trace, func(s wirepeer.Traced) bool { return match(&s) }); i >= 0 {
		return trace[i]
	}
	return wirepeer.Traced{}
}

// Where ENO fails, the connection goes on in clear, and conns says why.
func TestServersWithoutUsableENOAreServedInClear(t *testing.T) {
	t.Parallel()
	o := newOutbound(t, everything(opportunistic, `teps = ["curve25519", "p256"]`))
	x := wirepeer.BuildENO(0x01, 0x23)
	for _, c := range []struct {
		name   string
		eno    []byte
		reason string
	}{
		{"no ENO", nil, "no-eno"},
		{"two ENO options", slices.Concat(x, x), "no-eno"},
		{"ill-formed: length byte at the end", wirepeer.BuildENO(0x01, 0x23, 0x80), "no-eno"},
		{"ill-formed: length byte past the end", wirepeer.BuildENO(0x01, 0x23, 0x89, 0xa3, 1), "no-eno"},
		{"ill-formed: length byte before a global suboption", wirepeer.BuildENO(0x23, 0x80, 0x01), "no-eno"},
		{"wrong role bit", wirepeer.BuildENO(0x00, 0x23), "same-role"},
		{"no global suboption", wirepeer.BuildENO(0x23), "same-role"},
		{"TEP that was not offered", wirepeer.BuildENO(0x01, 0x24), "no-common-tep"},
		{"no TEP", wirepeer.BuildENO(0x01), "no-common-tep"},
		{"unknown TEPs only", wirepeer.BuildENO(0x01, 0x25, 0x6f), "no-common-tep"},
		{"repeated TEP", wirepeer.BuildENO(0x01, 0x23, 0x23), "no-common-tep"},
		{"experimental TEP", wirepeer.BuildENO(0x01, 0x20), "no-common-tep"},
		{"resumption that nobody offered", append([]byte{69, 13, 0x01, 0xa3}, make([]byte, 9)...), "no-common-tep"},
	} {
		t.Run(c.name, func(t *testing.T) {
			app, peer := o.connect(t, wirepeer.Script{ENO: c.eno})
			mustWrite(t, "program", app, "clear up")
			if got, err := peer.Read(soon(t), 8); string(got) != "clear up" {
				t.Fatalf("peer read %q, %v", got, err)
			}
			peer.WriteFIN([]byte("clear down"))
			mustReadAll(t, app, []byte("clear down"))
			got := o.daemon.conn(t, "the connection", to(peer.Local()))
			if got.Encrypted || !is(got.Reason, c.reason) || got.SessionID != nil || got.TEP != nil || got.AEAD != nil || got.Role != nil {
				t.Errorf("tcpcrypt conns says %v, want in clear because of %s", got, c.reason)
			}
			for _, seg := range peer.Trace() {
				if !seg.Out && !seg.Flags.Has(wirepeer.SYN) && seg.HasENO() {
					t.Errorf("ENO goes on: %v", &seg.Segment)
				}
			}
		})
	}
}

// badPublic are public keys as on the wire that no peer may accept.
func badPublic() []struct {
	name string
	tep  wirepeer.TEP
	key  []byte
} {
	point := func(prefix byte, size int, fill byte) []byte {
		p := binary.BigEndian.AppendUint16(nil, uint16(2+1+size))
		return append(append(p, prefix), bytes.Repeat([]byte{fill}, size)...)
	}
	offCurve := point(2, 32, 0)
	offCurve[len(offCurve)-1] = 1 // x = 1 has no y on P-256
	uncompressed := binary.BigEndian.AppendUint16(nil, 67)
	uncompressed = append(append(uncompressed, 4), bytes.Repeat([]byte{1}, 64)...)
	one := make([]byte, 32)
	one[0] = 1
	return []struct {
		name string
		tep  wirepeer.TEP
		key  []byte
	}{
		{"P-256 point off the curve", wirepeer.P256, offCurve},
		{"P-256 x not below the prime", wirepeer.P256, point(3, 32, 0xff)},
		{"P-256 uncompressed, off the curve", wirepeer.P256, uncompressed},
		{"P-256 infinity", wirepeer.P256, []byte{0, 3, 0}},
		{"P-256 of zeros", wirepeer.P256, point(0, 32, 0)},
		{"P-256 with a length that does not count itself", wirepeer.P256, append([]byte{0, 33, 2}, bytes.Repeat([]byte{7}, 32)...)},
		{"P-521 x not below the prime", wirepeer.P521, point(2, 66, 0xff)},
		{"P-521 with the length of P-256", wirepeer.P521, point(2, 32, 1)},
		{"Curve25519 of zeros", wirepeer.Curve25519, make([]byte, 32)},
		{"Curve25519 of low order", wirepeer.Curve25519, one},
		{"Curve448 of zeros", wirepeer.Curve448, make([]byte, 56)},
	}
}

// A wrong key exchange is an abort: RST to the peer, and a reset, no end of file, to
// the program.
func TestServersWithWrongKeyExchangeAreReset(t *testing.T) {
	t.Parallel()
	o := newOutbound(t, everything(opportunistic, everyAlgorithm))
	edit := func(f func(b []byte) []byte) wirepeer.Config { return wirepeer.Config{EditInit: f} }
	type wrong struct {
		name string
		cfg  wirepeer.Config
	}
	cases := []wrong{
		{"cipher never offered", wirepeer.Config{Choose: func([]wirepeer.Cipher) wirepeer.Cipher { return 0x7777 }}},
		{"wrong magic", edit(func(b []byte) []byte { b[3] ^= 1; return b })},
		{"magic of Init1", edit(func(b []byte) []byte { copy(b, []byte{0x15, 0x10, 0x1a, 0x0e}); return b })},
		{"message_len 0", edit(func(b []byte) []byte { copy(b[4:], []byte{0, 0, 0, 0}); return b })},
		{"message_len one too small", edit(func(b []byte) []byte { b[7]--; return b })},
		{"message_len of four gigabytes", edit(func(b []byte) []byte { copy(b[4:], []byte{0xff, 0xff, 0xff, 0xff}); return b })},
		{"message_len above the bound", edit(func(b []byte) []byte {
			copy(b[4:], []byte{0, 1, 0, 0})
			return append(b, make([]byte, 65536-len(b))...)
		})},
		{"text instead", edit(func([]byte) []byte { return []byte("220 mail.example ESMTP ready when you are\r\n") })},
	}
	for _, bad := range badPublic() {
		cases = append(cases, wrong{bad.name, wirepeer.Config{TEPs: []wirepeer.TEP{bad.tep}, Public: bad.key}})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			app, peer := o.connect(t, wirepeer.Script{Answer: c.cfg.Answer})
			// What our own side makes of it does not matter: often it cannot go on.
			_, _ = wirepeer.Handshake(soon(t), peer, c.cfg)
			if err := peer.Ended(soon(t)); !errors.Is(err, wirepeer.ErrReset) {
				t.Errorf("peer: %v, want %v", err, wirepeer.ErrReset)
			}
			mustReset(t, "program", app, nil)
			if got := o.daemon.conn(t, "the connection", to(peer.Local())); got.State != "closed" || got.SessionID != nil || got.BytesSent != 0 {
				t.Errorf("tcpcrypt conns says %v", got)
			}
		})
	}
	t.Run("FIN instead of Init2", func(t *testing.T) {
		app, peer := o.connect(t, wirepeer.Script{Answer: wirepeer.Config{}.Answer})
		peer.WriteFIN(nil)
		mustReset(t, "program", app, nil)
	})
	t.Run("FIN inside Init2", func(t *testing.T) {
		app, peer := o.connect(t, wirepeer.Script{Answer: wirepeer.Config{}.Answer})
		peer.WriteFIN([]byte{0x09, 0x71, 0x05})
		mustReset(t, "program", app, nil)
	})
	t.Run("RST instead of Init2", func(t *testing.T) {
		app, peer := o.connect(t, wirepeer.Script{Answer: wirepeer.Config{}.Answer})
		peer.Reset()
		mustReset(t, "program", app, nil)
	})
}

// Nothing of the program's data may be sent before Init2, and none in clear ever.
func TestNothingLeavesBeforeInit2(t *testing.T) {
	t.Parallel()
	o := newOutbound(t, everything(opportunistic, ""))
	app, peer := o.connect(t, wirepeer.Script{Answer: wirepeer.Config{}.Answer})
	mustWrite(t, "program", app, "a secret that is waiting")
	// Init1 has come whole; what is behind it would have come as well.
	if _, err := peer.Seen(soon(t), "the end of Init1", func(s *wirepeer.Traced) bool { return !s.Out && len(s.Payload) > 0 }); err != nil {
		t.Fatal(err)
	}
	s, err := wirepeer.Handshake(soon(t), peer, wirepeer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.ReadData(soon(t), 24); string(got) != "a secret that is waiting" {
		t.Errorf("peer read %q, %v", got, err)
	}
	for _, seg := range peer.Trace() {
		if bytes.Contains(seg.Payload, []byte("secret")) {
			t.Errorf("in clear: %q", seg.Payload)
		}
	}
}

// Init that begins and never ends is given up 15 seconds after the handshake.
func TestEndlessInitOfAServerIsGivenUp(t *testing.T) {
	t.Parallel()
	o := newOutbound(t, everything(opportunistic, ""))
	for _, c := range []struct {
		name  string
		begin []byte
	}{
		{"nothing at all", nil},
		{"message_len at the bound, and silence", []byte{0x09, 0x71, 0x05, 0xe0, 0, 0, 0x40, 0, 0, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			at, l := o.server(t, false, func() wirepeer.Script { return wirepeer.Script{Answer: wirepeer.Config{}.Answer} })
			app := o.a.mustDial(t, at)
			peer, err := l.Accept(soon(t))
			if err != nil {
				t.Fatal(err)
			}
			peer.Write(c.begin)
			if err := peer.Ended(soon(t)); !errors.Is(err, wirepeer.ErrReset) {
				t.Errorf("peer: %v, want %v", err, wirepeer.ErrReset)
			}
			mustReset(t, "program", app, nil)
		})
	}
}
