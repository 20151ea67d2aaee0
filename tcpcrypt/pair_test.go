package tcpcrypt

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
)

// area is the option area of a TCP header with opts in it, as a peer might lay it out.
func area(opts ...[]byte) []byte {
	b := []byte{2, 4, 5, 180, tcpOptionNOP, tcpOptionNOP} // MSS
	for _, o := range opts {
		b = append(b, o...)
	}
	for len(b)%4 != 0 {
		b = append(b, tcpOptionEOL)
	}
	return b
}

// negotiate runs ENO between an active and a passive opener.
func negotiate(t *testing.T, oa, ob Options) (active, passive *Negotiation) {
	t.Helper()
	active, err := NewNegotiation(oa, true)
	if err != nil {
		t.Fatal(err)
	}
	passive, err = NewNegotiation(ob, false)
	if err != nil {
		t.Fatal(err)
	}
	passive.ReceiveSYN(area(active.SYNOption(20)))
	active.ReceiveACK(area(passive.SYNOption(21)), true) // a resuming SYN-ACK needs 21
	ack := area()
	if o, _ := active.Outcome(); o.Encrypted {
		ack = area(NonSYNOption())
	}
	passive.ReceiveACK(ack, false)
	return active, passive
}

// sessions runs ENO and the key exchange, step bytes at a time.
func sessions(t *testing.T, oa, ob Options, step int) (a, b *Session) {
	t.Helper()
	na, nb := negotiate(t, oa, ob)
	ka, err := na.KeyExchange()
	if err != nil {
		t.Fatal(err)
	}
	kb, err := nb.KeyExchange()
	if err != nil {
		t.Fatal(err)
	}
	if kb.Start() != nil {
		t.Error("B sends first")
	}
	feed := func(k *KeyExchange, b []byte) (out []byte) {
		t.Helper()
		done := false
		for len(b) > 0 {
			n, o, d, err := k.Feed(b[:min(step, len(b))])
			if err != nil {
				t.Fatal(err)
			}
			if o != nil {
				out = o
			}
			b, done = b[n:], d
		}
		if !done {
			t.Fatal("a whole message was not enough")
		}
		return out
	}
	feed(ka, feed(kb, ka.Start()))
	return ka.Session(), kb.Session()
}

func TestEveryTEPWithEveryAEAD(t *testing.T) {
	for _, tep := range TEPs() {
		for _, aead := range AEADs() {
			t.Run(fmt.Sprintf("%v/%v", tep, aead), func(t *testing.T) {
				a, b := sessions(t, Options{TEPs: []TEP{tep}}, Options{TEPs: TEPs(), AEADs: nil}, 7)
				_ = b
				if a.TEP() != tep {
					t.Errorf("TEP %v", a.TEP())
				}
				a, b = sessions(t, Options{TEPs: TEPs(), AEADs: AEADs()}, Options{TEPs: []TEP{tep}, AEADs: []AEAD{aead}}, 1)
				if a.ID() != b.ID() || a.ID()[0] != byte(tep) || a.AEAD() != aead || b.AEAD() != aead {
					t.Fatalf("A has %v %v, B has %v %v", a.ID(), a.AEAD(), b.ID(), b.AEAD())
				}
				if a.Role() != RoleA || b.Role() != RoleB {
					t.Errorf("roles %v, %v", a.Role(), b.Role())
				}
				talk(t, a, b)
				talk(t, b, a)
			})
		}
	}
}

// talk sends a few frames one way.
func talk(t *testing.T, from, to *Session) {
	t.Helper()
	for _, size := range []int{0, 1, 1400, MaxData} {
		data := bytes.Repeat([]byte{byte(size)}, size)
		pass(t, from, to, data, Flags{})
	}
}

// pass seals and opens one frame.
func pass(t *testing.T, from, to *Session, data []byte, f Flags) Opened {
	t.Helper()
	frame, err := from.Sealer().Seal(nil, data, f)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := to.Opener().FrameLen(frame[:FrameHeaderLen]); err != nil || n != len(frame) {
		t.Fatalf("FrameLen = %d, %v; want %d", n, err, len(frame))
	}
	got, err := to.Opener().Open(frame)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Data, data) {
		t.Fatalf("%d bytes became %d others", len(data), len(got.Data))
	}
	if from.Sealer().Offset() != to.Opener().Offset() {
		t.Fatalf("offsets %d and %d", from.Sealer().Offset(), to.Opener().Offset())
	}
	return got
}

func TestPreferences(t *testing.T) {
	a, b := sessions(t, Options{TEPs: []TEP{Curve25519, P256, P521}, AEADs: []AEAD{AES128GCM, ChaCha20Poly1305}},
		Options{TEPs: []TEP{P521, P256}, AEADs: []AEAD{ChaCha20Poly1305, AES128GCM}}, 100)
	if a.TEP() != P521 || a.AEAD() != ChaCha20Poly1305 || b.TEP() != P521 {
		t.Errorf("agreed on %v %v: not B's preference", a.TEP(), a.AEAD())
	}
	n, _ := NewNegotiation(Options{}, true)
	if got := n.SYNOption(20); !bytes.Equal(got, []byte{69, 4, 0x21, 0x23}) {
		t.Errorf("default SYN option %x", got)
	}
	if again := n.SYNOption(0); !bytes.Equal(again, []byte{69, 4, 0x21, 0x23}) {
		t.Errorf("the option changed to %x", again)
	}
}

// TestFirstOffsets holds the offsets against RFC 8548, section 3.6: Init messages count.
func TestFirstOffsets(t *testing.T) {
	a, b := sessions(t, Options{AEADs: []AEAD{AES128GCM}}, Options{}, 1000)
	if a.Sealer().Offset() != 75 || b.Opener().Offset() != 75 {
		t.Errorf("A's first frame is at %d and %d, want 75", a.Sealer().Offset(), b.Opener().Offset())
	}
	if b.Sealer().Offset() != 74 || a.Opener().Offset() != 74 {
		t.Errorf("B's first frame is at %d and %d, want 74", b.Sealer().Offset(), a.Opener().Offset())
	}
}

func TestFIN(t *testing.T) {
	a, b := sessions(t, Options{}, Options{}, 1000)
	if got := pass(t, a, b, []byte("bye"), Flags{FIN: true}); !got.FIN {
		t.Error("FINp was lost")
	}
	if err := b.Opener().EndOfStream(); err != nil {
		t.Errorf("EndOfStream: %v", err)
	}
	if _, err := a.Sealer().Seal(nil, nil, Flags{}); !errors.Is(err, ErrFINSealed) {
		t.Errorf("a frame after the last: %v", err)
	}
	if _, err := b.Opener().FrameLen([]byte{0, 0, 17}); !errors.Is(err, ErrAfterFIN) {
		t.Errorf("bytes after the last frame: %v", err)
	}
	if err := b.Opener().EndOfStream(); !errors.Is(err, ErrAfterFIN) {
		t.Errorf("EndOfStream after that: %v", err)
	}
	pass(t, b, a, []byte("the other direction goes on"), Flags{FIN: true})
	b.sealer.err = nil // a peer that breaks the rule
	after, err := b.Sealer().Seal(nil, []byte("more"), Flags{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.Opener().Open(after); !errors.Is(err, ErrAfterFIN) || got.Data != nil {
		t.Errorf("a frame after the last: %+v, %v", got, err)
	}
	a, b = sessions(t, Options{}, Options{}, 1000)
	pass(t, b, a, []byte("no last frame"), Flags{})
	if err := a.Opener().EndOfStream(); !errors.Is(err, ErrTruncated) {
		t.Errorf("EndOfStream without FINp: %v", err)
	}
}

func TestUrgent(t *testing.T) {
	a, b := sessions(t, Options{}, Options{}, 1000)
	if got := pass(t, a, b, []byte("urgent!"), Flags{HasUrgent: true, Urgent: 3}); !got.HasUrgent || got.Urgent != 3 {
		t.Errorf("urgent %v %d", got.HasUrgent, got.Urgent)
	}
}

// TestEveryFlippedBit flips each bit of a frame: none may pass, and nothing after it.
func TestEveryFlippedBit(t *testing.T) {
	for _, aead := range AEADs() {
		a, _ := sessions(t, Options{AEADs: []AEAD{aead}}, Options{AEADs: []AEAD{aead}}, 1000)
		mk := new(secret)
		mk.b = a.sealer.mk.b
		frame, err := a.Sealer().Seal(nil, []byte("data"), Flags{})
		if err != nil {
			t.Fatal(err)
		}
		for bit := range 8 * len(frame) {
			bad := bytes.Clone(frame)
			bad[bit/8] ^= 1 << (bit % 8)
			o, err := newOpener(new(generations), mk, aead, RoleA, a.Sealer().Offset()-uint64(len(frame)))
			if err != nil {
				t.Fatal(err)
			}
			if n, err := o.FrameLen(bad); err == nil && n == len(bad) || err != nil {
				if _, err := o.Open(bad); err == nil {
					t.Fatalf("%v: bit %d was not noticed", aead, bit)
				}
			} else if _, err := o.Open(bad); err == nil { // another length
				t.Fatalf("%v: bit %d of the length was not noticed", aead, bit)
			}
			if _, err := o.Open(bytes.Clone(frame)); err == nil {
				t.Fatalf("%v: opened again after bit %d", aead, bit)
			}
		}
	}
}

func TestReplayAndReflection(t *testing.T) {
	a, b := sessions(t, Options{}, Options{}, 1000)
	frame, err := a.Sealer().Seal(nil, []byte("once"), Flags{})
	if err != nil {
		t.Fatal(err)
	}
	reflected := bytes.Clone(frame)
	if _, err := b.Opener().Open(bytes.Clone(frame)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Opener().Open(frame); !errors.Is(err, ErrAuth) {
		t.Errorf("the same frame again: %v", err)
	}
	if _, err := a.Opener().Open(reflected); !errors.Is(err, ErrAuth) {
		t.Errorf("its own frame: %v", err)
	}
}

func TestTooLong(t *testing.T) {
	a, b := sessions(t, Options{}, Options{}, 1000)
	dst := []byte("kept")
	got, err := a.Sealer().Seal(dst, make([]byte, MaxData+1), Flags{})
	if !errors.Is(err, ErrTooLong) || string(got) != "kept" {
		t.Errorf("Seal = %q, %v", got, err)
	}
	pass(t, a, b, make([]byte, MaxData), Flags{}) // and it was not fatal
}

// TestTamperedHandshake changes what one side believes that the other sent: the session
// IDs differ, and no frame passes.
func TestTamperedHandshake(t *testing.T) {
	na, nb := negotiate(t, Options{}, Options{})
	nb.chosen.a.raw = append([]byte(nil), nb.chosen.a.raw...)
	nb.chosen.a.raw[2] ^= 0x03
	ka, _ := na.KeyExchange()
	kb, _ := nb.KeyExchange()
	_, init2, _, err := kb.Feed(ka.Start())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := ka.Feed(init2); err != nil {
		t.Fatal(err)
	}
	if ka.Session().ID() == kb.Session().ID() {
		t.Error("equal session IDs over different transcripts")
	}
	frame, _ := ka.Session().Sealer().Seal(nil, []byte("x"), Flags{})
	if _, err := kb.Session().Opener().Open(frame); !errors.Is(err, ErrAuth) {
		t.Errorf("Open: %v", err)
	}
}

func TestWipe(t *testing.T) {
	a, _ := sessions(t, Options{}, Options{}, 1000)
	mk, next := a.sealer.mk, a.next.secret
	a.Wipe()
	a.Wipe()
	if mk.b != [keyLen]byte{} || next.b != [keyLen]byte{} || a.sealer.key.aead != nil {
		t.Error("secrets are still there")
	}
	if _, err := a.Sealer().Seal(nil, nil, Flags{}); !errors.Is(err, ErrWiped) {
		t.Errorf("Seal: %v", err)
	}
	if _, err := a.Opener().Open(make([]byte, 30)); !errors.Is(err, ErrWiped) {
		t.Errorf("Open: %v", err)
	}
	if a.TakeNext() != nil {
		t.Error("a wiped session gives its next secret away")
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	s := &secret{b: [keyLen]byte{1, 2, 3}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%s", "%d"} {
		if got := fmt.Sprintf(verb, s); got != "[secret]" {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}
