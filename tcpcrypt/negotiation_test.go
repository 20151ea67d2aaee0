package tcpcrypt

import (
	"bytes"
	"slices"
	"testing"
)

func mustNegotiation(t *testing.T, o Options, active bool) *Negotiation {
	t.Helper()
	n, err := NewNegotiation(o, active)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func wantPlain(t *testing.T, n *Negotiation, want Reason) {
	t.Helper()
	o, ok := n.Outcome()
	if !ok || o.Encrypted || o.Reason != want {
		t.Errorf("outcome %+v (decided %v), want plain: %s", o, ok, want)
	}
	if opt := n.SYNOption(40); opt != nil {
		t.Errorf("ENO %x after it was disabled", opt)
	}
	if kx, err := n.KeyExchange(); err == nil {
		t.Errorf("a key exchange on a plain connection: %v", kx)
	}
}

func TestPeerWithoutENO(t *testing.T) {
	a := mustNegotiation(t, Options{}, true)
	a.SYNOption(20)
	a.ReceiveACK(area(), true)
	wantPlain(t, a, ReasonNoENO)

	b := mustNegotiation(t, Options{}, false)
	b.ReceiveSYN(area())
	wantPlain(t, b, ReasonNoENO)
}

// TestReceivedOptions is about what counts as having no option (RFC 8547, section 4.1).
func TestReceivedOptions(t *testing.T) {
	eno := []byte{69, 4, 1, 0x23}
	for name, opts := range map[string][]byte{
		"two options":            area(eno, eno),
		"length 1":               area([]byte{69, 1, 0x23, 0x23}),
		"length past the header": {69, 9, 1, 0x23},
		"behind the end":         area([]byte{tcpOptionEOL}, eno),
		"behind a bad option":    append([]byte{8, 0}, eno...),
		"kind without length":    {tcpOptionNOP, tcpOptionNOP, tcpOptionNOP, 69},
		"ill-formed":             area([]byte{69, 4, 1, 0x80}),
	} {
		t.Run(name, func(t *testing.T) {
			a := mustNegotiation(t, Options{}, true)
			a.SYNOption(20)
			a.ReceiveACK(opts, true)
			wantPlain(t, a, ReasonNoENO)
		})
	}
	a := mustNegotiation(t, Options{}, true)
	a.SYNOption(20)
	a.ReceiveACK(append([]byte{1, 1, 1}, eno...), true)
	if o, _ := a.Outcome(); !o.Encrypted {
		t.Errorf("odd padding: %+v", o)
	}
}

func TestStripped(t *testing.T) {
	a := mustNegotiation(t, Options{}, true)
	b := mustNegotiation(t, Options{}, false)
	b.ReceiveSYN(area(a.SYNOption(20)))
	if b.SYNOption(20) == nil {
		t.Fatal("no answer")
	}
	b.ReceiveACK(area(), false)
	wantPlain(t, b, ReasonStripped)

	// In a non-SYN segment only presence counts: contents, and more than one, do not.
	for _, opts := range [][]byte{area([]byte{69, 2}), area([]byte{69, 2}, []byte{69, 2}), area([]byte{69, 5, 0x80, 0x80, 0x80})} {
		b := mustNegotiation(t, Options{}, false)
		b.ReceiveSYN(area(a.SYNOption(20)))
		b.SYNOption(20)
		b.ReceiveACK(opts, false)
		if o, _ := b.Outcome(); !o.Encrypted {
			t.Errorf("%x: %+v", opts, o)
		}
	}
}

// TestRetransmittedSYN: other bytes in a repeated SYN change nothing.
func TestRetransmittedSYN(t *testing.T) {
	b := mustNegotiation(t, Options{TEPs: TEPs()}, false)
	b.ReceiveSYN(area([]byte{69, 3, 0x23}))
	first := b.SYNOption(20)
	b.ReceiveSYN(area([]byte{69, 3, 0x21}))
	b.ReceiveSYN(area())
	if again := b.SYNOption(20); !bytes.Equal(first, again) || !bytes.Equal(first, []byte{69, 4, 1, 0x23}) {
		t.Errorf("answer %x became %x", first, again)
	}
	b.ReceiveACK(area(NonSYNOption()), false)
	if o, _ := b.Outcome(); !o.Encrypted || o.TEP != Curve25519 {
		t.Errorf("outcome %+v", o)
	}
}

func TestRoles(t *testing.T) {
	b := mustNegotiation(t, Options{}, false)
	b.ReceiveSYN(area([]byte{69, 4, 1, 0x23}))
	b.SYNOption(20)
	wantPlain(t, b, ReasonSameRole)

	a := mustNegotiation(t, Options{}, true)
	a.SYNOption(20)
	a.ReceiveACK(area([]byte{69, 3, 0x23}), true)
	wantPlain(t, a, ReasonSameRole)
}

func TestSimultaneousOpen(t *testing.T) {
	a := mustNegotiation(t, Options{TEPs: []TEP{P256, Curve25519}}, true)
	b := mustNegotiation(t, Options{TEPs: []TEP{P256, P521, Curve25519}, PassiveRole: true}, true)
	synA, synB := a.SYNOption(20), b.SYNOption(20)
	a.ReceiveSYN(area(synB))
	b.ReceiveSYN(area(synA))
	if !bytes.Equal(a.SYNOption(20), synA) || !bytes.Equal(b.SYNOption(20), synB) {
		t.Error("the SYN-ACK's option is not the SYN's")
	}
	a.ReceiveACK(area(NonSYNOption()), false)
	b.ReceiveACK(area(synA), true)
	oa, _ := a.Outcome()
	ob, _ := b.Outcome()
	if !oa.Encrypted || oa.Role != RoleA || ob.Role != RoleB || oa.TEP != P256 || ob.TEP != P256 {
		t.Errorf("outcomes %+v and %+v", oa, ob)
	}
	if !bytes.Equal(a.transcript(), b.transcript()) {
		t.Error("transcripts differ")
	}

	// Both the same role: the SYN-ACK says so by having no option.
	c, d := mustNegotiation(t, Options{}, true), mustNegotiation(t, Options{}, true)
	c.SYNOption(20)
	c.ReceiveSYN(area(d.SYNOption(20)))
	wantPlain(t, c, ReasonSameRole)
}

// TestSimultaneousOpenSYNACK: the SYN-ACK of a simultaneous open is held to the rules of
// SYN segments, but what it says is not looked at again.
func TestSimultaneousOpenSYNACK(t *testing.T) {
	peer := []byte{69, 4, 1, 0x23}
	for name, tt := range map[string]struct {
		synack []byte
		want   Reason
	}{
		"same":       {area(peer), ""},
		"other":      {area([]byte{69, 4, 1, 0x21}), ""},
		"two":        {area(peer, peer), ReasonStripped},
		"ill-formed": {area([]byte{69, 4, 0x23, 0x80}), ReasonStripped},
		"none":       {area(), ReasonStripped},
	} {
		n := mustNegotiation(t, Options{}, true)
		n.SYNOption(20)
		n.ReceiveSYN(area(peer))
		n.ReceiveACK(tt.synack, true)
		if o, ok := n.Outcome(); !ok || o.Encrypted != (tt.want == "") || o.Reason != tt.want || o.Encrypted && o.TEP != Curve25519 {
			t.Errorf("%s: outcome %+v", name, o)
		}
	}

	n := mustNegotiation(t, Options{RequireApplicationAware: true}, true)
	n.SYNOption(20)
	n.ReceiveSYN(area(peer))
	wantPlain(t, n, ReasonPolicy)
}

func TestOptionIsACopy(t *testing.T) {
	n := mustNegotiation(t, Options{}, true)
	first := n.SYNOption(20)
	clear(first)
	if got := n.SYNOption(20); !bytes.Equal(got, []byte{69, 4, 0x21, 0x23}) {
		t.Errorf("the caller changed our option to %x", got)
	}
}

func TestApplicationAware(t *testing.T) {
	a, b := negotiate(t, Options{ApplicationAware: true}, Options{ApplicationAware: true, RequireApplicationAware: true})
	oa, _ := a.Outcome()
	ob, _ := b.Outcome()
	if !oa.Encrypted || !oa.PeerApplicationAware || !ob.PeerApplicationAware {
		t.Errorf("outcomes %+v and %+v", oa, ob)
	}
	_, b = negotiate(t, Options{}, Options{RequireApplicationAware: true})
	wantPlain(t, b, ReasonPolicy)
	a, _ = negotiate(t, Options{RequireApplicationAware: true}, Options{})
	wantPlain(t, a, ReasonPolicy)
}

func TestWithdraw(t *testing.T) {
	a := mustNegotiation(t, Options{}, true)
	a.SYNOption(20)
	a.Withdraw()
	a.ReceiveACK(area([]byte{69, 4, 1, 0x23}), true) // whatever comes back
	wantPlain(t, a, ReasonFallback)
}

// TestSpace: what does not fit is left out, least preferred first; nothing fits: none.
func TestSpace(t *testing.T) {
	for space, want := range map[int][]byte{
		20: {69, 6, 0x24, 0x22, 0x21, 0x23}, 6: {69, 6, 0x24, 0x22, 0x21, 0x23}, 5: {69, 5, 0x22, 0x21, 0x23},
		3: {69, 3, 0x23}, 2: nil,
	} {
		n := mustNegotiation(t, Options{TEPs: []TEP{Curve25519, P256, P521, Curve448}}, true)
		if got := n.SYNOption(space); !bytes.Equal(got, want) {
			t.Errorf("space %d: %x, want %x", space, got, want)
		}
		if o, ok := n.Outcome(); ok != (want == nil) || o.Encrypted {
			t.Errorf("space %d: outcome %+v, decided %v", space, o, ok)
		}
	}
	b := mustNegotiation(t, Options{}, false)
	b.ReceiveSYN(area([]byte{69, 3, 0x23}))
	if got := b.SYNOption(3); got != nil {
		t.Errorf("an answer of %d bytes in 3", len(got))
	}
}

func TestBadOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"unknown TEP": {TEPs: []TEP{0x20}}, "TEP twice": {TEPs: []TEP{P256, P256}}, "no TEPs": {TEPs: []TEP{}},
		"unknown AEAD": {AEADs: []AEAD{3}}, "AEAD twice": {AEADs: []AEAD{1, 1}}, "long nonce": {ShortNonce: 9}, "negative nonce": {ShortNonce: -1}, "negative age": {MaxKeyAge: -1},
	} {
		if _, err := NewNegotiation(o, true); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestResumeChain resumes a session several times, from either side, with nonces of
// several lengths.
func TestResumeChain(t *testing.T) {
	a, b := sessions(t, Options{}, Options{}, 1000)
	for i, short := range []int{0, 8, 5, 0} {
		ra, rb := a.TakeNext(), b.TakeNext()
		if a.TakeNext() != nil {
			t.Fatal("a session secret was given away twice")
		}
		opens, answers := ra, rb
		if i%2 == 1 {
			opens, answers = rb, ra
		}
		looked := 0
		na, nb := negotiate(t, Options{Offer: opens, ShortNonce: short}, Options{ShortNonce: short,
			Lookup: func(tep TEP, half [IdentifierHalfLen]byte) *Resumable {
				looked++
				if _, theirs := answers.Halves(); tep != answers.TEP() || theirs != half {
					return nil
				}
				return answers
			}})
		so, err := na.ResumedSession()
		if err != nil {
			t.Fatalf("resumption %d: %v", i, err)
		}
		sp, err := nb.ResumedSession()
		if err != nil || looked != 1 {
			t.Fatalf("resumption %d: %v, %d look-ups", i, err, looked)
		}
		if so.ID() != sp.ID() || so.ID()[0] != byte(Curve25519)|vBit || !so.Resumed() || so.Role() != RoleA {
			t.Fatalf("resumption %d: %v and %v", i, so.ID(), sp.ID())
		}
		if so.Sealer().Offset() != 0 {
			t.Errorf("the first frame is at %d", so.Sealer().Offset())
		}
		talk(t, so, sp)
		talk(t, sp, so)
		a, b = so, sp
		if i%2 == 1 {
			a, b = sp, so
		}
	}
}

// TestResumptionUnknown: a peer that does not know the session answers with v = 0, and
// a fresh key exchange follows in the same handshake.
func TestResumptionUnknown(t *testing.T) {
	a, _ := sessions(t, Options{}, Options{}, 1000)
	for name, lookup := range map[string]func(TEP, [IdentifierHalfLen]byte) *Resumable{
		"no cache": nil, "not in it": func(TEP, [IdentifierHalfLen]byte) *Resumable { return nil },
	} {
		r := a.TakeNext()
		if r == nil {
			a, _ = sessions(t, Options{}, Options{}, 1000)
			r = a.TakeNext()
		}
		na, nb := negotiate(t, Options{Offer: r}, Options{Lookup: lookup})
		oa, _ := na.Outcome()
		ob, _ := nb.Outcome()
		if !oa.Encrypted || oa.Resumed || ob.Resumed || !ob.Encrypted {
			t.Errorf("%s: %+v and %+v", name, oa, ob)
		}
	}
}

// TestPhases walks every event in every phase: what is decided stays decided.
func TestPhases(t *testing.T) {
	events := map[string]func(*Negotiation){
		"syn":      func(n *Negotiation) { n.ReceiveSYN(area([]byte{69, 3, 0x23})) },
		"syn bare": func(n *Negotiation) { n.ReceiveSYN(area()) },
		"synack":   func(n *Negotiation) { n.ReceiveACK(area([]byte{69, 4, 1, 0x23}), true) },
		"ack":      func(n *Negotiation) { n.ReceiveACK(area(NonSYNOption()), false) },
		"ack bare": func(n *Negotiation) { n.ReceiveACK(area(), false) },
		"send":     func(n *Negotiation) { n.SYNOption(20) },
		"withdraw": func(n *Negotiation) { n.Withdraw() },
	}
	names := make([]string, 0, len(events))
	for name := range events {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, active := range []bool{true, false} {
		for _, first := range names {
			for _, second := range names {
				for _, third := range names {
					n := mustNegotiation(t, Options{}, active)
					decided := false
					var was Outcome
					for _, e := range []string{first, second, third} {
						events[e](n)
						o, ok := n.Outcome()
						if decided && (!ok || o != was) {
							t.Fatalf("active %v: %s, %s, %s: %+v became %+v", active, first, second, third, was, o)
						}
						if o.Encrypted && n.mine.raw == nil {
							t.Fatalf("active %v: %s, %s, %s: encrypted without having sent ENO", active, first, second, third)
						}
						decided, was = ok, o
					}
				}
			}
		}
	}
}
