package tcpcrypt

import (
	"bytes"
	"errors"
	"testing"
)

func FuzzOptionArea(f *testing.F) {
	f.Add([]byte{2, 4, 5, 180, 69, 4, 1, 0x23, 1, 3, 3, 7})
	f.Add([]byte{69, 2})
	f.Add([]byte{69, 4, 0x21, 0x23, 69, 2, 0, 0})
	f.Add([]byte{1, 1, 69, 0})
	f.Fuzz(func(t *testing.T, area []byte) {
		eno, count := findENO(area)
		if (eno == nil) != (count == 0) || eno != nil && (len(eno) < 2 || int(eno[1]) != len(eno)) {
			t.Fatalf("findENO(%x) = %x, %d", area, eno, count)
		}
		for _, active := range []bool{true, false} {
			n, err := NewNegotiation(Options{TEPs: TEPs()}, active)
			if err != nil {
				t.Fatal(err)
			}
			if !active {
				n.ReceiveSYN(area)
			}
			if opt := n.SYNOption(20); len(opt) > 20 {
				t.Fatalf("an option of %d bytes", len(opt))
			}
			n.ReceiveACK(area, active)
			if o, ok := n.Outcome(); !ok || o.Encrypted && count == 0 {
				t.Fatalf("outcome %+v, decided %v", o, ok)
			}
		}
	})
}

func FuzzENO(f *testing.F) {
	f.Add([]byte{69, 4, 1, 0x23})
	f.Add([]byte{69, 8, 0x82, 0xa3, 1, 2, 3, 0x21})
	f.Add([]byte{69, 13, 0x21, 0xa3, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Fuzz(func(t *testing.T, raw []byte) {
		o, err := parseENO(raw)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("parseENO(%x): %v", raw, err)
			}
			return
		}
		for i, s := range o.subs {
			if s.v && i < len(o.subs)-1 && (len(s.data) < 1 || len(s.data) > 32) {
				t.Fatalf("%x: suboption %d has %d bytes of data", raw, i, len(s.data))
			}
		}
		if again := buildENO(o.subs); len(again) <= len(raw) {
			o2, err := parseENO(again)
			if err != nil || len(o2.subs) != len(o.subs) {
				t.Fatalf("%x became %x: %v", raw, again, err)
			}
			for i, s := range o.subs {
				if s2 := o2.subs[i]; s.glt != s2.glt || s.v != s2.v || !bytes.Equal(s.data, s2.data) {
					t.Fatalf("%x became %x", raw, again)
				}
			}
		}
		other, _ := parseENO([]byte{69, 6, 0x24, 0x22, 0x21, 0x23})
		c := choose(other, o, func(TEP, []byte, []byte) bool { return true })
		if c.ok && !c.tep.known() {
			t.Fatalf("%x: chose %v", raw, c.tep)
		}
	})
}

func FuzzInit(f *testing.F) {
	for _, tep := range TEPs() {
		for _, role := range []Role{RoleA, RoleB} {
			a, err := newKeyExchange(Outcome{TEP: tep, Role: RoleA}, nil, DefaultAEADs())
			if err != nil {
				f.Fatal(err)
			}
			b, err := newKeyExchange(Outcome{TEP: tep, Role: RoleB}, nil, DefaultAEADs())
			if err != nil {
				f.Fatal(err)
			}
			message := a.Start()
			if role == RoleA {
				if _, message, _, err = b.Feed(message); err != nil {
					f.Fatal(err)
				}
			}
			f.Add(byte(tep), role == RoleA, message, uint8(3))
		}
	}
	f.Fuzz(func(t *testing.T, id byte, asA bool, stream []byte, step uint8) {
		tep := TEP(id)
		if !tep.known() {
			return
		}
		o := Outcome{Encrypted: true, TEP: tep, Role: RoleB}
		if asA {
			o.Role = RoleA
		}
		run := func(step int) (used int, done bool, err error) {
			kx, err := newKeyExchange(o, nil, DefaultAEADs())
			if err != nil {
				t.Fatal(err)
			}
			kx.Start()
			for used < len(stream) && !done && err == nil {
				var n int
				n, _, done, err = kx.Feed(stream[used:min(used+step, len(stream))])
				used += n
				if cap(kx.received) > 2*used+64 {
					t.Fatalf("%d bytes held for %d that came", cap(kx.received), used)
				}
			}
			if done != (kx.Session() != nil) {
				t.Fatalf("done %v, session %v", done, kx.Session())
			}
			return used, done, err
		}
		used1, done1, err1 := run(int(step) + 1)
		used2, done2, err2 := run(len(stream) + 1)
		if done1 != done2 || (err1 == nil) != (err2 == nil) || done1 && used1 != used2 {
			t.Fatalf("in steps: %d, %v, %v; at once: %d, %v, %v", used1, done1, err1, used2, done2, err2)
		}
	})
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte{0, 0, 17}, true)
	f.Add([]byte{1, 0, 0}, false)
	f.Add(bytes.Repeat([]byte{0}, 20), true)
	f.Fuzz(func(t *testing.T, frame []byte, chacha bool) {
		aead := AES128GCM
		if chacha {
			aead = ChaCha20Poly1305
		}
		o, err := newOpener(new(generations), &secret{b: [keyLen]byte{7}}, aead, RoleA, 99)
		if err != nil {
			t.Fatal(err)
		}
		n, err := o.FrameLen(frame)
		switch {
		case errors.Is(err, ErrNeedMore), errors.Is(err, ErrMalformed):
		case err != nil:
			t.Fatalf("FrameLen(%x): %v", frame, err)
		case n < FrameHeaderLen+minClen || n > FrameHeaderLen+maxClen:
			t.Fatalf("FrameLen(%x) = %d", frame, n)
		}
		if got, err := o.Open(bytes.Clone(frame)); err == nil || got.Data != nil {
			t.Fatalf("opened a forged frame %x", frame)
		}
		if o.EndOfStream() == nil {
			t.Fatal("the stream ended well")
		}
	})
}

// FuzzPlaintext is about what only the true peer can send: any control byte and any
// plaintext, sealed well.
func FuzzPlaintext(f *testing.F) {
	f.Add(byte(0), []byte{0})
	f.Add(byte(0xfe), []byte{0xff, 0, 1, 'x'})
	f.Add(byte(1), []byte{2, 0})
	f.Fuzz(func(t *testing.T, control byte, plain []byte) {
		if len(plain) > maxClen-tagLen {
			return
		}
		mk := &secret{b: [keyLen]byte{7}}
		gen := new(generations)
		o, err := newOpener(gen, mk, ChaCha20Poly1305, RoleB, 99)
		if err != nil {
			t.Fatal(err)
		}
		rekeyed := control&rekeyBit != 0
		if rekeyed {
			mk = mk.masterKey(nil)
		}
		key, err := mk.trafficKey(ChaCha20Poly1305, RoleB)
		if err != nil {
			t.Fatal(err)
		}
		clen := len(plain) + tagLen
		frame := []byte{control, byte(clen >> 8), byte(clen)}
		frame = key.aead.Seal(frame, key.nonceAt(99), plain, frame)

		got, err := o.Open(frame)
		flags, data := byte(0), plain
		if len(plain) > 0 {
			flags, data = plain[0], plain[1:]
		}
		urgent := flags&urgentBit != 0
		if len(plain) == 0 || urgent && len(data) < 2 {
			if !errors.Is(err, ErrMalformed) || got.Data != nil || o.EndOfStream() == nil {
				t.Fatalf("Open(%x) = %+v, %v", plain, got, err)
			}
			return
		}
		if urgent {
			if want := uint16(data[0])<<8 | uint16(data[1]); got.Urgent != want {
				t.Fatalf("Open(%x): urgent %d, want %d", plain, got.Urgent, want)
			}
			data = data[2:]
		}
		fin := flags&finBit != 0
		if err != nil || !bytes.Equal(got.Data, data) || got.FIN != fin || got.HasUrgent != urgent || got.Rekeyed != rekeyed {
			t.Fatalf("control %#x, Open(%x) = %+v, %v", control, plain, got, err)
		}
		if remote := gen.remote.Load(); remote > 1 || remote == 1 != rekeyed {
			t.Fatalf("remote generation %d, rekeyed %v", remote, rekeyed)
		}
		if (o.EndOfStream() == nil) != fin {
			t.Fatalf("FINp %v, the stream ended: %v", fin, o.EndOfStream())
		}
	})
}

// FuzzConversation runs the two ends of a session against each other, each byte of
// script an event: who, and whether it sends, rekeys, ends, or receives.
func FuzzConversation(f *testing.F) {
	f.Add([]byte{0x00, 0x10, 0x04, 0x14})             // each sends, each receives
	f.Add([]byte{0x01, 0x00, 0x14, 0x10, 0x04})       // one rekeys
	f.Add([]byte{0x01, 0x11, 0x00, 0x10, 0x04, 0x14}) // both at once
	f.Add([]byte{0x01, 0x00, 0x12, 0x14, 0x02, 0x04}) // one after the other's end
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 200 {
			return
		}
		ends := newConversation(t)
		for i, b := range script {
			from, to := ends[b>>4&1], ends[b>>4&1^1]
			switch b & 7 {
			case 0, 5:
				from.send(t, to, bytes.Repeat([]byte{byte(i)}, i%7), false)
			case 1:
				from.sealer.Rekey()
			case 2:
				from.send(t, to, []byte("end"), true)
			case 3:
				from.send(t, to, nil, false)
			default:
				from.receive(t)
			}
		}
		// All is delivered, and what is owed then is paid, until nothing moves.
		for moved := true; moved; {
			moved = false
			for i, e := range ends {
				for len(e.inbox) > 0 {
					e.receive(t)
					moved = true
				}
				for e.gen.owed() > 0 {
					e.send(t, ends[i^1], nil, false)
					moved = true
				}
			}
		}
		for i, e := range ends {
			peer := ends[i^1]
			if !bytes.Equal(e.got, peer.sent) || (e.opener.EndOfStream() == nil) != peer.ended {
				t.Fatalf("%d got %x of %x, end of stream: %v", i, e.got, peer.sent, e.opener.EndOfStream())
			}
			if e.gen.remote.Load() != peer.gen.local.Load() {
				t.Fatalf("%d is at remote generation %d, its peer at %d", i, e.gen.remote.Load(), peer.gen.local.Load())
			}
			if !e.ended && e.gen.local.Load() < e.gen.remote.Load() {
				t.Fatalf("%d owes still", i)
			}
		}
	})
}

// A conversationEnd is one end, and the frames on their way to it.
type conversationEnd struct {
	gen       generations
	sealer    *Sealer
	opener    *Opener
	inbox     [][]byte
	sent, got []byte
	ended     bool
}

func newConversation(t *testing.T) (ends [2]*conversationEnd) {
	t.Helper()
	mk := &secret{b: [keyLen]byte{9}}
	for i, role := range []Role{RoleA, RoleB} {
		e := new(conversationEnd)
		var err1, err2 error
		e.sealer, err1 = newSealer(&e.gen, mk, AES128GCM, role, 10)
		e.opener, err2 = newOpener(&e.gen, mk, AES128GCM, RoleB-role, 10)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		ends[i] = e
	}
	return ends
}

func (e *conversationEnd) send(t *testing.T, to *conversationEnd, data []byte, last bool) {
	t.Helper()
	ahead := e.gen.local.Load() > e.gen.remote.Load()
	was := e.gen.local.Load()
	frame, err := e.sealer.Seal(nil, data, Flags{FIN: last})
	if e.ended {
		if !errors.Is(err, ErrFINSealed) {
			t.Fatalf("a frame after the last: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(data) == 0 && ahead && e.gen.local.Load() != was {
		t.Fatal("an empty frame ran further ahead")
	}
	e.sent, e.ended = append(e.sent, data...), last
	to.inbox = append(to.inbox, frame)
}

func (e *conversationEnd) receive(t *testing.T) {
	t.Helper()
	if len(e.inbox) == 0 {
		return
	}
	opened, err := e.opener.Open(e.inbox[0])
	if err != nil {
		t.Fatal(err)
	}
	e.inbox, e.got = e.inbox[1:], append(e.got, opened.Data...)
}
