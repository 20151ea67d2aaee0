package tcpcrypt

import (
	"bytes"
	"errors"
	"testing"
)

// exchange runs Init1 and Init2 past what is in the way of them. It returns no session
// where an end has none, or has given up.
func exchange(t *testing.T, tep TEP, init1, init2 func([]byte)) (a, b *Session) {
	t.Helper()
	o := Options{TEPs: []TEP{tep}}
	na, nb := negotiate(t, o, o)
	ka, errA := na.KeyExchange()
	kb, errB := nb.KeyExchange()
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	message := ka.Start()
	init1(message)
	_, message, _, err := kb.Feed(message)
	if err != nil || message == nil {
		return nil, kb.Session()
	}
	init2(message)
	if _, _, _, err = ka.Feed(message); err != nil && ka.Session() != nil {
		t.Fatalf("A has a session and %v", err)
	}
	return ka.Session(), kb.Session()
}

// TestEveryFlippedBitOfInit: who gets a session after a bit has changed has another
// one than its peer.
func TestEveryFlippedBitOfInit(t *testing.T) {
	leave := func([]byte) {}
	for _, tep := range []TEP{Curve25519, P256} {
		for which, length := range map[string]int{"Init1": 4 + 4 + 1 + 4 + 32 + tep.minPublicLen(), "Init2": 4 + 4 + 2 + 32 + tep.minPublicLen()} {
			for bit := range 8 * length {
				flip := func(b []byte) {
					if len(b) != length {
						t.Fatalf("%s has %d bytes, want %d", which, len(b), length)
					}
					b[bit/8] ^= 1 << (bit % 8)
				}
				var a, b *Session
				if which == "Init1" {
					a, b = exchange(t, tep, flip, leave)
				} else {
					a, b = exchange(t, tep, leave, flip)
				}
				if a == nil || b == nil {
					continue
				}
				if a.ID() == b.ID() {
					t.Fatalf("%v: bit %d of %s was not noticed", tep, bit, which)
				}
				for from, to := range map[*Session]*Session{a: b, b: a} {
					frame, err := from.Sealer().Seal(nil, []byte("x"), Flags{})
					if err != nil {
						t.Fatal(err)
					}
					if _, err := to.Opener().Open(frame); !errors.Is(err, ErrAuth) {
						t.Fatalf("%v: bit %d of %s: a frame passed: %v", tep, bit, which, err)
					}
				}
			}
		}
	}
}

// TestInitCutAtEveryByte: a message in two pieces is the same message, and what is
// behind it is not touched.
func TestInitCutAtEveryByte(t *testing.T) {
	for _, tep := range []TEP{Curve25519, P256} {
		o := Outcome{Encrypted: true, TEP: tep, TEPByte: byte(tep)}
		pair := func() (a, b *KeyExchange) {
			oB := o
			oB.Role = RoleB
			a, errA := newKeyExchange(o, nil, DefaultAEADs())
			b, errB := newKeyExchange(oB, nil, DefaultAEADs())
			if err := errors.Join(errA, errB); err != nil {
				t.Fatal(err)
			}
			return a, b
		}
		feed := func(k *KeyExchange, message []byte, cut int) []byte {
			t.Helper()
			if n, out, done, err := k.Feed(message[:cut]); n != cut || out != nil || done || err != nil {
				t.Fatalf("first %d bytes: %d, %x, done %v, %v", cut, n, out, done, err)
			}
			if k.Session() != nil {
				t.Fatalf("a session after %d bytes", cut)
			}
			rest := append(bytes.Clone(message[cut:]), 1, 2, 3)
			n, out, done, err := k.Feed(rest)
			if n != len(message)-cut || !done || err != nil {
				t.Fatalf("the rest after %d bytes: %d, done %v, %v", cut, n, done, err)
			}
			return out
		}
		a, _ := pair()
		for cut := range len(a.Start()) {
			a, b := pair()
			init2 := feed(b, a.Start(), cut)
			feed(a, init2, min(cut, len(init2)-1))
			if a.Session().ID() != b.Session().ID() {
				t.Fatalf("cut at %d: other session", cut)
			}
		}
	}
}

// TestPrefixes: no message can be read from a part of it.
func TestPrefixes(t *testing.T) {
	for _, tep := range TEPs() {
		k, err := newKeyPair(tep)
		if err != nil {
			t.Fatal(err)
		}
		nonce := make([]byte, initNonceLen)
		one := init1{aeads: AEADs(), nonce: nonce, pub: k.public()}.append(nil)
		two := init2{aead: AES128GCM, nonce: nonce, pub: k.public()}.append(nil)
		for i := range one {
			if _, err := parseInit1(tep, one[:i]); !errors.Is(err, ErrMalformed) {
				t.Errorf("%v: %d bytes of Init1: %v", tep, i, err)
			}
		}
		for i := range two {
			if _, err := parseInit2(tep, two[:i]); !errors.Is(err, ErrMalformed) {
				t.Errorf("%v: %d bytes of Init2: %v", tep, i, err)
			}
		}
		for i := range initHeaderLen {
			if _, err := parseInitHeader(tep, init1Magic, one[:i]); !errors.Is(err, ErrNeedMore) {
				t.Errorf("%v: %d bytes of the header: %v", tep, i, err)
			}
		}
	}

	a, b := sessions(t, Options{}, Options{}, 1000)
	frame, err := a.Sealer().Seal(nil, []byte("data"), Flags{FIN: true, HasUrgent: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range frame {
		n, err := b.Opener().FrameLen(frame[:i])
		if i < FrameHeaderLen && !errors.Is(err, ErrNeedMore) || i >= FrameHeaderLen && (err != nil || n != len(frame)) {
			t.Fatalf("FrameLen of %d bytes: %d, %v", i, n, err)
		}
		o := *b.opener // its error would stick
		if _, err := o.Open(bytes.Clone(frame[:i])); !errors.Is(err, ErrMalformed) {
			t.Errorf("Open of %d bytes: %v", i, err)
		}
	}

	eno := []byte{69, 8, 0x82, 0xa3, 1, 2, 3, 0x21}
	header := append([]byte{1, 2, 4, 5, 180, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0}, eno...)
	for i := range len(header) + 1 {
		got, count := findENO(header[:i])
		if want := i == len(header); (count == 1) != want || want && !bytes.Equal(got, eno) {
			t.Errorf("%d bytes of a header: %x, %d", i, got, count)
		}
	}
	for i := range eno {
		if _, err := parseENO(eno[:i]); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d bytes of an option: %v", i, err)
		}
	}
}

// TestLongIgnoredTail: what follows Pub in an Init message is skipped, counts for the
// offsets and enters the transcript; beyond the bound it is refused before it comes.
func TestLongIgnoredTail(t *testing.T) {
	for total, good := range map[int]bool{maxInitLen: true, maxInitLen + 1: false} {
		na, nb := negotiate(t, Options{}, Options{})
		ka, _ := na.KeyExchange()
		kb, _ := nb.KeyExchange()
		message := append(ka.Start(), make([]byte, total-len(ka.Start()))...)
		message[6], message[7] = byte(total>>8), byte(total)
		ka.sent = message // as A would have sent it
		n, init2, done, err := kb.Feed(message)
		if !good {
			if !errors.Is(err, ErrMalformed) || n > initHeaderLen {
				t.Errorf("%d bytes: took %d, %v", total, n, err)
			}
			continue
		}
		if n != total || !done || err != nil {
			t.Fatalf("%d bytes: took %d, done %v, %v", total, n, done, err)
		}
		if _, _, _, err := ka.Feed(init2); err != nil {
			t.Fatal(err)
		}
		if ka.Session().ID() != kb.Session().ID() || kb.Session().Opener().Offset() != uint64(total) {
			t.Errorf("session IDs %v and %v, offset %d", ka.Session().ID(), kb.Session().ID(), kb.Session().Opener().Offset())
		}
	}
}

// TestMemoryGrowsWithWhatCame: a length alone makes us hold nothing.
func TestMemoryGrowsWithWhatCame(t *testing.T) {
	_, nb := negotiate(t, Options{}, Options{})
	k, _ := nb.KeyExchange()
	header := []byte{0x15, 0x10, 0x1a, 0x0e, 0, 0, 0x40, 0} // 16 KiB to come
	if _, _, _, err := k.Feed(header); err != nil {
		t.Fatal(err)
	}
	if cap(k.received) > 64 {
		t.Errorf("%d bytes held for %d", cap(k.received), len(header))
	}
}
