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
