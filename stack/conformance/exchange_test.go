package conformance

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

func TestRFC8548_4_1_ExactInit(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, crypto(tcpcrypt.Options{AEADs: tcpcrypt.AEADs()}), script{}, config{})
		e.talk()
		b := e.stream()
		want := []byte{0x15, 0x10, 0x1a, 0x0e, 0, 0, 0, 79, 3}
		if !active {
			want = []byte{0x09, 0x71, 0x05, 0xe0, 0, 0, 0, 74, byte(e.s.Cipher >> 8), byte(e.s.Cipher)}
		}
		if !bytes.HasPrefix(b, want) {
			t.Errorf("Init begins with %x, want %x", b[:min(len(b), 12)], want)
		}
	})
}

// TestRFC8548_4_1_LastByteOfInitIsPushed: also where the message needs several segments.
func TestRFC8548_4_1_LastByteOfInitIsPushed(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		for _, mss := range []uint16{1460, 60} {
			e := newRig(t).open(active, opts{}, script{MSS: mss}, config{})
			e.talk()
			n := binary.BigEndian.Uint32(e.stream()[4:])
			all := e.ours()
			start := all[0].Seq + 1
			for _, s := range all[1:] {
				first, behind := s.Seq-start, s.Seq-start+uint32(len(s.Payload))
				if first < n && behind >= n && !s.Flags.Has(wirepeer.PSH) {
					t.Errorf("MSS %d: no PSH: %v", mss, &s)
				}
			}
		}
	})
}

func TestRFC8548_4_1_IgnoredBytesAreSkippedAndHashed(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		newRig(t).open(active, opts{}, script{}, config{InitTail: bytes.Repeat([]byte{0x15}, 3000)}).talk()
	})
}

func TestRFC8548_3_3_InitInAnySegments(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		newRig(t).open(active, opts{}, script{SegmentSize: 1}, config{}).talk()
	})
}

// TestRFC8548_3_3_DataBehindInit: a frame in the segment that ends Init.
func TestRFC8548_3_3_DataBehindInit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var held []byte
	cfg := config{SendInit: func(_ *wirepeer.Conn, b []byte) { held = b }}
	peer, wait := r.dial(opts{}, script{Answer: cfg.Answer})
	s, err := wirepeer.Handshake(r.ctx, peer, cfg)
	if err != nil {
		t.Fatal(err)
	}
	peer.Write(slices.Concat(held, s.Seal(wirepeer.Frame{Data: []byte("at once")})))
	app, err := wait()
	if err != nil {
		t.Fatal(err)
	}
	e := &end{t: t, ctx: r.ctx, app: app, peer: peer, s: s}
	e.read("at once")
	e.talk()
}

func TestRFC8548_3_3_BadInitAborts(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		edit := func(f func(b []byte)) config {
			return config{EditInit: func(b []byte) []byte { f(b); return b }}
		}
		length := func(n uint32) config { return edit(func(b []byte) { binary.BigEndian.PutUint32(b[4:], n) }) }
		cases := map[string]config{
			"magic":                edit(func(b []byte) { b[3] ^= 1 }),
			"the other's magic":    edit(func(b []byte) { copy(b, []byte{9, 0x71, 5, 0xe0, 0, 0, 0, 74}); b[0] ^= 0x40 }),
			"too short by a byte":  length(4 + 4 + 1 + 32 + 32),
			"no length at all":     length(0),
			"longer than anything": length(1 << 31),
		}
		if active {
			cases["a cipher never offered"] = config{Choose: func([]wirepeer.Cipher) wirepeer.Cipher { return 0x7777 }}
		} else {
			cases["no cipher"] = config{Ciphers: []wirepeer.Cipher{}}
			cases["no common cipher"] = config{Ciphers: []wirepeer.Cipher{0x7777}}
		}
		for name, cfg := range cases {
			t.Run(name, func(t *testing.T) { badInit(t, active, opts{}, cfg) })
		}
		if active { // known to us, but not offered
			t.Run("a cipher not offered", func(t *testing.T) {
				badInit(t, active, crypto(tcpcrypt.Options{AEADs: []tcpcrypt.AEAD{0x0001}}),
					config{Choose: func([]wirepeer.Cipher) wirepeer.Cipher { return wirepeer.AES256GCM }})
			})
		}
	})
}

// badInit holds that the key exchange fails at our end, with RST.
func badInit(t *testing.T, active bool, o opts, cfg config) {
	t.Helper()
	r := newRig(t)
	if !active {
		e := r.accept(o, script{ENO: wirepeer.Config{TEPs: cfg.TEPs}.Offer()})
		go func() { _, _ = wirepeer.Handshake(r.ctx, e.peer, cfg) }()
		e.aborted(nil)
		return
	}
	peer, wait := r.dial(o, script{Answer: wirepeer.Config{TEPs: cfg.TEPs}.Answer})
	go func() { _, _ = wirepeer.Handshake(r.ctx, peer, cfg) }()
	(&end{t: t, ctx: r.ctx, peer: peer}).reset()
	if _, err := wait(); err == nil {
		t.Error("Dial has not failed")
	}
}

func TestRFC8548_5_BadPublicKeyAborts(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		for name, c := range map[string]struct {
			tep wirepeer.TEP
			key []byte
		}{
			"Curve25519, zero":       {wirepeer.Curve25519, make([]byte, 32)},
			"Curve448, zero":         {wirepeer.Curve448, make([]byte, 56)},
			"P-256, not on it":       {wirepeer.P256, append([]byte{0, 35, 2}, bytes.Repeat([]byte{0xff}, 32)...)},
			"P-256, infinity":        {wirepeer.P256, append([]byte{0, 35}, make([]byte, 33)...)},
			"P-256, length":          {wirepeer.P256, append([]byte{0, 34, 2}, bytes.Repeat([]byte{1}, 33)...)},
			"P-521, not on it":       {wirepeer.P521, append([]byte{0, 69, 2}, bytes.Repeat([]byte{0xff}, 66)...)},
			"P-256, bad first octet": {wirepeer.P256, append([]byte{0, 35, 5}, bytes.Repeat([]byte{1}, 32)...)},
		} {
			t.Run(name, func(t *testing.T) {
				badInit(t, active, crypto(tcpcrypt.Options{TEPs: tcpcrypt.TEPs()}), config{TEPs: []wirepeer.TEP{c.tep}, Public: c.key})
			})
		}
	})
}

func TestRFC8548_7_EveryTEPAndAEAD(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		for _, tep := range wirepeer.TEPs {
			for _, c := range wirepeer.Ciphers {
				e := newRig(t).open(active, crypto(tcpcrypt.Options{TEPs: tcpcrypt.TEPs(), AEADs: tcpcrypt.AEADs()}), script{},
					config{TEPs: []wirepeer.TEP{tep}, Ciphers: []wirepeer.Cipher{c}})
				e.talk()
				if sec := e.security(); byte(sec.TEP) != byte(tep) || uint16(sec.AEAD) != uint16(c) {
					t.Errorf("%v, %v; want %v, %v", sec.TEP, sec.AEAD, tep, c)
				}
			}
		}
	})
}

func TestRFC8548_3_3_BChoosesTheCipher(t *testing.T) {
	t.Parallel()
	e := newRig(t).open(false, crypto(tcpcrypt.Options{AEADs: []tcpcrypt.AEAD{0x0010, 0x0001}}), script{},
		config{Ciphers: []wirepeer.Cipher{0x7777, wirepeer.AES256GCM, wirepeer.AES128GCM, wirepeer.ChaCha20Poly1305}})
	if e.s.Cipher != wirepeer.ChaCha20Poly1305 {
		t.Errorf("%v", e.s.Cipher)
	}
	e.talk()
}

func TestRFC8548_3_4_SessionID(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		r, seen := newRig(t), map[tcpcrypt.SessionID]bool{}
		for range 3 {
			e := r.open(active, opts{NoResume: true}, script{}, config{})
			e.talk() // compares it with the peer's
			id := e.security().SessionID
			if id[0] != 0x23 || seen[id] {
				t.Errorf("session ID %v", id)
			}
			seen[id] = true
		}
	})
}
