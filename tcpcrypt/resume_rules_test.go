package tcpcrypt

import (
	"bytes"
	"slices"
	"testing"
)

// TestSeveralOffersToResume: of offers with more than one TEP the one that is known is
// answered; one that is known, but stands twice, is not.
func TestSeveralOffersToResume(t *testing.T) {
	a, b := chainEnds(P256, AES128GCM)
	own, _ := a.Halves()
	unknown := bytes.Repeat([]byte{7}, halfLen)
	for name, tt := range map[string]struct {
		subs []suboption
		want suboption // of the answer, but for data
	}{
		"second known":      {[]suboption{{glt: byte(Curve25519), v: true, data: unknown}, {glt: byte(P256), v: true, data: own[:]}}, suboption{glt: byte(P256), v: true}},
		"first known":       {[]suboption{{glt: byte(P256), v: true, data: own[:]}, {glt: byte(Curve25519), v: true, data: unknown}}, suboption{glt: byte(P256), v: true}},
		"twice":             {[]suboption{{glt: byte(P256), v: true, data: own[:]}, {glt: byte(P256), v: true, data: own[:]}, {glt: byte(Curve25519)}}, suboption{glt: byte(Curve25519)}},
		"under another TEP": {[]suboption{{glt: byte(Curve25519), v: true, data: own[:]}}, suboption{glt: byte(Curve25519)}},
		"short":             {[]suboption{{glt: byte(P256), v: true, data: own[:8]}}, suboption{glt: byte(P256)}},
		"long":              {[]suboption{{glt: byte(P256), v: true, data: slices.Concat(own[:], make([]byte, 9))}}, suboption{glt: byte(P256)}},
		"longest":           {[]suboption{{glt: byte(P256), v: true, data: slices.Concat(own[:], make([]byte, 8))}}, suboption{glt: byte(P256), v: true}},
		"shortest":          {[]suboption{{glt: byte(P256), v: true, data: own[:]}}, suboption{glt: byte(P256), v: true}},
	} {
		c := newTestCache(t, CacheOptions{})
		put(t, c, peerOne, false, &Resumable{secret: &secret{b: b.secret.b}, index: 1, tep: b.tep, aead: b.aead, role: b.role})
		n := mustNegotiation(t, Options{Lookup: func(tep TEP, half [IdentifierHalfLen]byte) *Resumable {
			return c.Lookup(tep, half, Options{})
		}}, false)
		n.ReceiveSYN(area(buildENO(tt.subs)))
		o, err := parseENO(n.SYNOption(40))
		if err != nil || len(o.subs) != 2 {
			t.Errorf("%s: answer %x, %v", name, o.raw, err)
			continue
		}
		if got := o.subs[1]; got.glt != tt.want.glt || got.v != tt.want.v {
			t.Errorf("%s: answer %x, want TEP %#x with v = %v", name, o.raw, tt.want.glt, tt.want.v)
		}
	}
}

// TestResumptionKeepsWhatWasAgreedOn: AEAD and TEP are the original session's, whatever
// either end prefers by now, and so are the directions of the keys, whoever opens.
func TestResumptionKeepsWhatWasAgreedOn(t *testing.T) {
	for _, swapped := range []bool{false, true} {
		a, b := chainEnds(P521, ChaCha20Poly1305)
		keyA, keyB := sealedBy(t, a), sealedBy(t, b)
		opens, answers := a, b
		if swapped {
			opens, answers = b, a
		}
		o := Options{TEPs: TEPs(), AEADs: AEADs(), ShortNonce: maxNonceLen}
		oo, oa := o, o
		oo.Offer, oa.Lookup = opens, lookupOf(answers)
		na, nb := negotiate(t, oo, oa)
		so, err1 := na.ResumedSession()
		sa, err2 := nb.ResumedSession()
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		for _, s := range []*Session{so, sa} {
			if s.TEP() != P521 || s.AEAD() != ChaCha20Poly1305 || s.ID()[0] != byte(P521)|vBit {
				t.Errorf("swapped %v: %v with %v, session ID %v", swapped, s.TEP(), s.AEAD(), s.ID())
			}
		}
		want := [2][]byte{keyA, keyB}
		if swapped {
			want = [2][]byte{keyB, keyA}
		}
		for i, s := range []*Session{so, sa} {
			if frame, err := s.Sealer().Seal(nil, []byte("x"), Flags{}); err != nil || !bytes.Equal(frame, want[i]) {
				t.Errorf("swapped %v: end %d seals with the other direction's key", swapped, i)
			}
		}
		if so.Role() != RoleA || sa.Role() != RoleB {
			t.Errorf("swapped %v: roles %v and %v in this connection", swapped, so.Role(), sa.Role())
		}
	}
}

// sealedBy is the first frame, of "x", that r's host sends after a resumption without
// nonces, from the key schedule alone.
func sealedBy(t *testing.T, r *Resumable) []byte {
	t.Helper()
	s, err := newSealer(new(generations), r.secret.masterKey(nil), r.aead, r.role, 0)
	if err != nil {
		t.Fatal(err)
	}
	frame, err := s.Seal(nil, []byte("x"), Flags{})
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

// TestOfferIsAlwaysOwned: a negotiation that cannot use an offer erases it, and so does
// one that cannot be.
func TestOfferIsAlwaysOwned(t *testing.T) {
	for name, tt := range map[string]struct {
		o      Options
		active bool
	}{
		"passive": {Options{}, false}, "bad options": {Options{ShortNonce: 9}, true}, "bad options, passive": {Options{ShortNonce: 9}, false},
	} {
		a, _ := chainEnds(Curve25519, AES128GCM)
		ss := a.secret
		tt.o.Offer = a
		_, _ = NewNegotiation(tt.o, tt.active)
		if ss.b != (secretBytes{}) {
			t.Errorf("%s: the secret is still there", name)
		}
	}
}

// TestApplicationAwareResumption: the mode counts for resumptions as well.
func TestApplicationAwareResumption(t *testing.T) {
	a, b := chainEnds(Curve25519, AES128GCM)
	na, nb := negotiate(t, Options{Offer: a.Claim(), ApplicationAware: true, ShortNonce: 1}, Options{Lookup: lookupOf(b), RequireApplicationAware: true, ApplicationAware: true})
	oa, _ := na.Outcome()
	ob, _ := nb.Outcome()
	if !oa.Resumed || !ob.Resumed || !oa.PeerApplicationAware || !ob.PeerApplicationAware {
		t.Errorf("outcomes %+v and %+v", oa, ob)
	}
	_, nb = negotiate(t, Options{Offer: a.Claim()}, Options{Lookup: lookupOf(b), RequireApplicationAware: true})
	wantPlain(t, nb, ReasonPolicy)
	if b.Index() != 2 {
		t.Error("a secret was claimed for a connection that policy turns down")
	}
}
