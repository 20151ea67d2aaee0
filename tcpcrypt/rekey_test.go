package tcpcrypt

import (
	"bytes"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestRekeyIsFollowedAndAnswered(t *testing.T) {
	a, b := sessions(t, Options{}, Options{}, 1000)
	old := a.sealer.mk
	a.Sealer().Rekey()
	if got := pass(t, a, b, []byte("first under new keys"), Flags{}); !got.Rekeyed {
		t.Fatal("not rekeyed")
	}
	if old.b != [keyLen]byte{} {
		t.Error("the old master key is still there")
	}
	if b.OwedRekeys() != 1 || a.OwedRekeys() != 0 {
		t.Fatalf("B owes %d, A %d", b.OwedRekeys(), a.OwedRekeys())
	}
	if got := pass(t, a, b, []byte("second"), Flags{}); got.Rekeyed {
		t.Error("rekeyed again")
	}
	if got := pass(t, b, a, nil, Flags{}); !got.Rekeyed {
		t.Error("the answer does not rekey")
	}
	if b.OwedRekeys() != 0 || a.OwedRekeys() != 0 {
		t.Errorf("B owes %d, A %d", b.OwedRekeys(), a.OwedRekeys())
	}
	talk(t, a, b)
	talk(t, b, a)
}

// TestEmptyFramesDoNotRunAhead: RFC 8548, section 3.8, forbids a second rekeying with an
// empty frame as long as the peer has not answered the first.
func TestEmptyFramesDoNotRunAhead(t *testing.T) {
	a, b := sessions(t, Options{}, Options{}, 1000)
	a.Sealer().Rekey()
	if got := pass(t, a, b, nil, Flags{}); !got.Rekeyed {
		t.Fatal("the first was not rekeyed")
	}
	a.Sealer().Rekey()
	if got := pass(t, a, b, nil, Flags{}); got.Rekeyed {
		t.Error("rekeyed again with an empty frame")
	}
	a.sealer.used.frames = MaxKeyFramesGCM
	if got := pass(t, a, b, nil, Flags{}); got.Rekeyed {
		t.Error("rekeyed again with an empty frame, for the budget")
	}
	if got := pass(t, a, b, []byte("data"), Flags{}); !got.Rekeyed {
		t.Error("the request was forgotten")
	}
	if got := pass(t, a, b, []byte("data"), Flags{}); got.Rekeyed {
		t.Error("one request rekeyed twice")
	}
	pass(t, b, a, nil, Flags{})
	pass(t, b, a, nil, Flags{})
	a.Sealer().Rekey()
	if got := pass(t, a, b, nil, Flags{}); !got.Rekeyed {
		t.Error("not rekeyed once the peer has caught up")
	}
}

// TestAnswerIsRequest: a frame that answers a rekeying is under new keys, and so does
// what was asked for.
func TestAnswerIsRequest(t *testing.T) {
	a, b := sessions(t, Options{}, Options{}, 1000)
	a.Sealer().Rekey()
	pass(t, a, b, nil, Flags{})
	b.Sealer().Rekey()
	if got := pass(t, b, a, nil, Flags{}); !got.Rekeyed {
		t.Error("no answer")
	}
	if got := pass(t, b, a, []byte("x"), Flags{}); got.Rekeyed || a.OwedRekeys() != 0 {
		t.Error("answered and initiated")
	}
}

func TestSimultaneousRekey(t *testing.T) {
	a, b := sessions(t, Options{}, Options{}, 1000)
	a.Sealer().Rekey()
	b.Sealer().Rekey()
	fa, _ := a.Sealer().Seal(nil, []byte("from A"), Flags{})
	fb, _ := b.Sealer().Seal(nil, []byte("from B"), Flags{})
	for s, f := range map[*Session][]byte{a: fb, b: fa} {
		if got, err := s.Opener().Open(f); err != nil || !got.Rekeyed {
			t.Fatalf("Open: %+v, %v", got, err)
		}
		if s.OwedRekeys() != 0 {
			t.Errorf("owes %d", s.OwedRekeys())
		}
	}
	talk(t, a, b)
	talk(t, b, a)
}

// TestRekeyFlood: a peer that rekeys without end makes us hold a number.
func TestRekeyFlood(t *testing.T) {
	a, b := sessions(t, Options{}, Options{}, 1000)
	const n = 1000
	for range n {
		a.Sealer().Rekey()
		pass(t, a, b, []byte("x"), Flags{}) // with data one may run ahead
	}
	if b.OwedRekeys() != n {
		t.Fatalf("owes %d, want %d", b.OwedRekeys(), n)
	}
	for i := n; i > 0; i-- {
		if b.OwedRekeys() != i {
			t.Fatalf("owes %d, want %d", b.OwedRekeys(), i)
		}
		pass(t, b, a, nil, Flags{})
	}
	if local, remote := b.Generations(); local != n || remote != n {
		t.Errorf("generations %d and %d", local, remote)
	}
}

func TestNothingIsOwedAfterFIN(t *testing.T) {
	a, b := sessions(t, Options{}, Options{}, 1000)
	pass(t, b, a, nil, Flags{FIN: true})
	a.Sealer().Rekey()
	pass(t, a, b, []byte("x"), Flags{})
	if b.OwedRekeys() != 0 {
		t.Errorf("owes %d after FINp", b.OwedRekeys())
	}
	pass(t, a, b, []byte("y"), Flags{FIN: true})
}

// TestBudgets: a key that has done its work is replaced without being asked.
func TestBudgets(t *testing.T) {
	frames := map[AEAD]uint64{AES128GCM: 1 << 23, AES256GCM: 1 << 23, ChaCha20Poly1305: 1 << 32}
	for _, aead := range AEADs() {
		a, b := sessions(t, Options{AEADs: []AEAD{aead}}, Options{AEADs: []AEAD{aead}}, 1000)
		pass(t, a, b, nil, Flags{})
		a.sealer.used.frames = frames[aead] - 1
		if got := pass(t, a, b, nil, Flags{}); got.Rekeyed {
			t.Errorf("%v: rekeyed one frame early", aead)
		}
		if got := pass(t, a, b, nil, Flags{}); !got.Rekeyed {
			t.Errorf("%v: not rekeyed after its frames", aead)
		}
		a.sealer.used.bytes = MaxKeyBytes - 10
		if got := pass(t, a, b, make([]byte, 9), Flags{}); got.Rekeyed {
			t.Errorf("%v: rekeyed too early", aead)
		}
		if got := pass(t, a, b, []byte("x"), Flags{}); !got.Rekeyed {
			t.Errorf("%v: not rekeyed after its bytes", aead)
		}
	}
}

// TestLowerBudgets come with the options, and go no higher than ours.
func TestLowerBudgets(t *testing.T) {
	high := Options{MaxKeyBytes: 1 << 40, MaxKeyFrames: 1 << 40, MaxKeyAge: 2 * time.Hour}
	a, b := sessions(t, Options{MaxKeyBytes: 1000, MaxKeyFrames: 3}, high, 1000)
	if b.sealer.budget != (keyBudget{MaxKeyBytes, MaxKeyFramesGCM, time.Hour}) {
		t.Errorf("budget %+v", b.sealer.budget)
	}
	var got []bool
	for _, size := range []int{1, 1, 1, 1, 900, 99, 1} {
		got = append(got, pass(t, a, b, make([]byte, size), Flags{}).Rekeyed)
	}
	// Four frames are one too many; 2 + 901 and 100 bytes, flags included, are too.
	if want := []bool{false, false, false, true, false, true, false}; !slices.Equal(got, want) {
		t.Errorf("rekeyed %v, want %v", got, want)
	}
	na, _ := negotiate(t, Options{Offer: a.TakeNext(), MaxKeyFrames: 7, MaxKeyAge: time.Minute}, Options{Lookup: lookupOf(b.TakeNext())})
	s, err := na.ResumedSession()
	if err != nil || s.sealer.budget.frames != 7 || s.sealer.budget.age != time.Minute {
		t.Errorf("resumed: %v, %v", s, err)
	}
}

// TestKeyAge: the first frame after it is under new keys, and only that one. An empty one
// does not run ahead, for its age either.
func TestKeyAge(t *testing.T) {
	for _, tt := range []struct{ set, want time.Duration }{
		{0, time.Hour}, {time.Minute, time.Minute}, {time.Hour + 1, time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := sessions(t, Options{MaxKeyAge: tt.set}, Options{}, 1000)
			time.Sleep(tt.want - 1)
			if pass(t, a, b, []byte("x"), Flags{}).Rekeyed {
				t.Errorf("%v: rekeyed early", tt.set)
			}
			time.Sleep(time.Nanosecond)
			if !pass(t, a, b, nil, Flags{}).Rekeyed || pass(t, a, b, []byte("x"), Flags{}).Rekeyed {
				t.Errorf("%v: not rekeyed once at %v", tt.set, tt.want)
			}
			time.Sleep(tt.want)
			if pass(t, a, b, nil, Flags{}).Rekeyed {
				t.Errorf("%v: rekeyed again with an empty frame", tt.set)
			}
			pass(t, b, a, nil, Flags{}) // the answer
			if !pass(t, a, b, nil, Flags{}).Rekeyed {
				t.Errorf("%v: not rekeyed once the peer has caught up", tt.set)
			}
			time.Sleep(tt.want / 2)
			a.Sealer().Rekey()
			pass(t, a, b, []byte("x"), Flags{})
			time.Sleep(tt.want - 1)
			if pass(t, a, b, []byte("x"), Flags{}).Rekeyed {
				t.Errorf("%v: a key that was new at a rekeying is replaced by the old one's age", tt.set)
			}
		})
	}
}

// TestNoNonceTwice watches the nonces of a stream with rekeyings in it.
func TestNoNonceTwice(t *testing.T) {
	a, _ := sessions(t, Options{}, Options{}, 1000)
	seen := make(map[string]bool)
	var buf []byte
	for i := range 5000 {
		if i%100 == 99 {
			a.Sealer().Rekey()
		}
		at := a.Sealer().Offset()
		var err error
		if buf, err = a.Sealer().Seal(buf[:0], bytes.Repeat([]byte{1}, i%50), Flags{}); err != nil {
			t.Fatal(err)
		}
		k := string(a.sealer.mk.b[:]) + string(a.sealer.key.nonceAt(at))
		if seen[k] {
			t.Fatalf("frame %d repeats a nonce", i)
		}
		seen[k] = true
		if a.Sealer().Offset() != at+uint64(len(buf)) {
			t.Fatalf("frame %d: offset %d, want %d", i, a.Sealer().Offset(), at+uint64(len(buf)))
		}
	}
}

func TestOffsetDoesNotWrap(t *testing.T) {
	a, _ := sessions(t, Options{}, Options{}, 1000)
	a.sealer.offset = 1<<64 - 10
	if _, err := a.Sealer().Seal(nil, nil, Flags{}); err == nil {
		t.Error("sealed beyond the last offset")
	}
}

// TestSealInPlace: data that is where the frame has it makes the same frame.
func TestSealInPlace(t *testing.T) {
	for _, aead := range AEADs() {
		o := Options{AEADs: []AEAD{aead}}
		a, b := sessions(t, o, o, 1000)
		data := bytes.Repeat([]byte("data"), 1000)
		buf := make([]byte, 5, 5+len(data)+Overhead)
		plain := buf[5+DataOffset : 5+DataOffset+len(data)]
		copy(plain, data)
		out, err := a.Sealer().Seal(buf, plain, Flags{})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := b.Opener().Open(out[5:]); err != nil || !bytes.Equal(got.Data, data) {
			t.Errorf("%v: %v", aead, err)
		}
	}
}

func TestSealAndOpenDoNotAllocate(t *testing.T) {
	for _, aead := range AEADs() {
		a, b := sessions(t, Options{AEADs: []AEAD{aead}}, Options{AEADs: []AEAD{aead}}, 1000)
		data, dst := make([]byte, 16<<10), make([]byte, 0, 64<<10)
		if n := testing.AllocsPerRun(50, func() {
			frame, err := a.Sealer().Seal(dst, data, Flags{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Opener().FrameLen(frame); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Opener().Open(frame); err != nil {
				t.Fatal(err)
			}
			b.OwedRekeys()
		}); n != 0 {
			t.Errorf("%v: %v allocations a frame", aead, n)
		}
	}
}
