package tcpcrypt

import (
	"bytes"
	"fmt"
	"testing"
)

// knownSessions is a session that both ends can resume, each in its original role.
func knownSessions(t *testing.T, o Options) (a, b *Resumable) {
	t.Helper()
	sa, sb := sessions(t, o, o, 1000)
	return sa.TakeNext(), sb.TakeNext()
}

// lookupOf answers with r's claim for the identifiers that r may be named by.
func lookupOf(r *Resumable) func(TEP, [IdentifierHalfLen]byte) *Resumable {
	return func(t TEP, half [IdentifierHalfLen]byte) *Resumable {
		for n, h := range r.PeerHalves() {
			if t == r.TEP() && h == half {
				r.Skip(n)
				return r.Claim()
			}
		}
		return nil
	}
}

// TestClaimedSecretsAreUsedOnce: each connection that resumes has an i of its own, also
// if the attempts before came to nothing, and no two hands hold the same secret.
func TestClaimedSecretsAreUsedOnce(t *testing.T) {
	a, b := knownSessions(t, Options{})
	ids := make(map[SessionID]bool)
	for i := range 4 {
		for range i { // attempts that the passive side never saw
			a.Claim().Wipe()
		}
		want := a.Index()
		na, nb := negotiate(t, Options{Offer: a.Claim()}, Options{Lookup: lookupOf(b)})
		sa, err := na.ResumedSession()
		if err != nil {
			t.Fatal(err)
		}
		sb, err := nb.ResumedSession()
		if err != nil {
			t.Fatal(err)
		}
		if sa.ID() != sb.ID() || ids[sa.ID()] {
			t.Fatalf("session IDs %v and %v", sa.ID(), sb.ID())
		}
		ids[sa.ID()] = true
		if a.Index() != want+1 || b.Index() != want+1 {
			t.Errorf("i is %d and %d after %d was used", a.Index(), b.Index(), want)
		}
		if sa.TakeNext() != nil || sb.TakeNext() != nil {
			t.Error("ss[i+1] is in two hands")
		}
		talk(t, sa, sb)
		talk(t, sb, sa)
	}
}

func TestTooFarAhead(t *testing.T) {
	a, b := knownSessions(t, Options{})
	a.Skip(MaxAhead + 1)
	na, nb := negotiate(t, Options{Offer: a.Claim()}, Options{Lookup: lookupOf(b)})
	for _, n := range []*Negotiation{na, nb} {
		if o, _ := n.Outcome(); !o.Encrypted || o.Resumed {
			t.Errorf("outcome %+v, want a fresh key exchange", o)
		}
	}
	if b.Index() != 1 {
		t.Errorf("the chain moved to %d", b.Index())
	}
}

// TestReplayedOffer: a second SYN with the same identifier finds it claimed.
func TestReplayedOffer(t *testing.T) {
	a, b := knownSessions(t, Options{})
	syn := area(mustNegotiation(t, Options{Offer: a.Claim()}, true).SYNOption(20))
	lookup := lookupOf(b)
	for i, want := range []bool{true, false} {
		n := mustNegotiation(t, Options{Lookup: lookup}, false)
		n.ReceiveSYN(syn)
		opt, err := parseENO(n.SYNOption(40))
		if err != nil {
			t.Fatal(err)
		}
		if sub, ok := opt.find(Curve25519); !ok || sub.v != want {
			t.Errorf("answer %d: %x, want resumption: %v", i, opt.raw, want)
		}
	}
}

// TestResumptionGoesBeforePreference: RFC 8548, section 3.5, wants a known session
// resumed, whatever TEP the passive side would choose otherwise.
func TestResumptionGoesBeforePreference(t *testing.T) {
	a, b := knownSessions(t, Options{TEPs: []TEP{P256}})
	na, nb := negotiate(t, Options{Offer: a.Claim()}, Options{Lookup: lookupOf(b)})
	for _, n := range []*Negotiation{na, nb} {
		if o, _ := n.Outcome(); !o.Resumed || o.TEP != P256 {
			t.Errorf("outcome %+v, want P-256 resumed", o)
		}
	}
}

// TestOfferThatIsNotMade is about sessions that our own options forbid, and about no
// room: what is left is a fresh offer, and the secret is gone.
func TestOfferThatIsNotMade(t *testing.T) {
	for name, tt := range map[string]struct {
		o     Options
		space int
		want  []byte
	}{
		"TEP not allowed":  {Options{TEPs: []TEP{P256}}, 40, []byte{69, 3, 0x21}},
		"AEAD not allowed": {Options{AEADs: []AEAD{ChaCha20Poly1305}}, 40, []byte{69, 4, 0x21, 0x23}},
		"no room":          {Options{}, 19, []byte{69, 3, 0x23}},
	} {
		r, _ := knownSessions(t, Options{AEADs: []AEAD{AES128GCM}})
		tt.o.Offer = r
		n := mustNegotiation(t, tt.o, true)
		if got := n.SYNOption(tt.space); !bytes.Equal(got, tt.want) {
			t.Errorf("%s: option %x, want %x", name, got, tt.want)
		}
		if r.secret != nil {
			t.Errorf("%s: the secret is still there", name)
		}
		if n.Offered() {
			t.Errorf("%s: offered", name)
		}
	}
	r, _ := knownSessions(t, Options{})
	n := mustNegotiation(t, Options{Offer: r}, true)
	before := n.Offered()
	if n.SYNOption(40); before || !n.Offered() {
		t.Errorf("offered before the SYN: %v, after it: %v", before, n.Offered())
	}
}

// TestLookupIsAskedOnlyWithRoom: what it returns is spent.
func TestLookupIsAskedOnlyWithRoom(t *testing.T) {
	for space, want := range map[int]bool{20: false, 21: true} {
		a, b := knownSessions(t, Options{})
		asked := false
		n := mustNegotiation(t, Options{Lookup: func(t TEP, half [IdentifierHalfLen]byte) *Resumable {
			asked = true
			return lookupOf(b)(t, half)
		}}, false)
		n.ReceiveSYN(area(mustNegotiation(t, Options{Offer: a}, true).SYNOption(20)))
		if opt := n.SYNOption(space); asked != want || (len(opt) == 21) != want || len(opt) > space {
			t.Errorf("space %d: asked %v, answered %x", space, asked, opt)
		}
	}
}

// TestWrongLookup: a cache that errs makes no answer that cannot work.
func TestWrongLookup(t *testing.T) {
	a, b := knownSessions(t, Options{})
	c, _ := knownSessions(t, Options{TEPs: []TEP{P256}})
	spent, _ := knownSessions(t, Options{})
	spent.Wipe()
	for name, r := range map[string]*Resumable{"other session": c, "spent": spent, "other role": a} {
		syn := area(mustNegotiation(t, Options{Offer: a.Claim()}, true).SYNOption(20))
		n := mustNegotiation(t, Options{Lookup: func(TEP, [IdentifierHalfLen]byte) *Resumable { return r }}, false)
		n.ReceiveSYN(syn)
		if got := n.SYNOption(40); !bytes.Equal(got, []byte{69, 4, 1, 0x23}) {
			t.Errorf("%s: %x", name, got)
		}
	}
	b.Wipe()
}

// TestSecretIsGoneUnlessUsed follows an offer, and a claim, through every end that
// does not use it.
func TestSecretIsGoneUnlessUsed(t *testing.T) {
	for name, end := range map[string]func(*Negotiation){
		"withdrawn": (*Negotiation).Withdraw,
		"wiped":     (*Negotiation).Wipe,
		"stripped":  func(n *Negotiation) { n.ReceiveACK(area(), n.active) },
		"fresh": func(n *Negotiation) {
			if n.active {
				n.ReceiveACK(area([]byte{69, 4, 1, 0x21}), true)
			} else {
				n.Wipe() // our answer to resume cannot become a fresh exchange
			}
		},
	} {
		a, b := knownSessions(t, Options{})
		na := mustNegotiation(t, Options{Offer: a}, true)
		nb := mustNegotiation(t, Options{Lookup: func(TEP, [IdentifierHalfLen]byte) *Resumable { return b }}, false)
		nb.ReceiveSYN(area(na.SYNOption(20)))
		if len(nb.SYNOption(40)) != 21 {
			t.Fatal("no resumption")
		}
		for _, n := range []*Negotiation{na, nb} {
			secret := n.resumable().secret
			end(n)
			if secret.b != [keyLen]byte{} || n.resumable().secret != nil {
				t.Errorf("%s: active %v has the secret still", name, n.active)
			}
			if _, err := n.ResumedSession(); err == nil {
				t.Errorf("%s: active %v resumed", name, n.active)
			}
		}
	}
}

// TestSimultaneousResumption: both offer; it works if the identifiers fit, and else the
// TEP is invalid for both.
func TestSimultaneousResumption(t *testing.T) {
	for _, fits := range []bool{true, false} {
		t.Run(fmt.Sprintf("fits=%v", fits), func(t *testing.T) {
			a, b := knownSessions(t, Options{})
			if !fits {
				b.Skip(1)
			}
			na := mustNegotiation(t, Options{Offer: a}, true)
			nb := mustNegotiation(t, Options{Offer: b, PassiveRole: true}, true)
			synA, synB := area(na.SYNOption(40)), area(nb.SYNOption(40))
			na.ReceiveSYN(synB)
			nb.ReceiveSYN(synA)
			na.ReceiveACK(synB, true)
			nb.ReceiveACK(synA, true)
			oa, _ := na.Outcome()
			ob, _ := nb.Outcome()
			if !oa.Encrypted || !ob.Encrypted || oa.Resumed != fits || ob.Resumed != fits || oa.TEP != ob.TEP {
				t.Fatalf("outcomes %+v and %+v", oa, ob)
			}
			if !fits {
				if oa.TEP != P256 {
					t.Errorf("TEP %v, want the other", oa.TEP)
				}
				return
			}
			sa, errA := na.ResumedSession()
			sb, errB := nb.ResumedSession()
			if errA != nil || errB != nil || sa.ID() != sb.ID() {
				t.Fatalf("sessions %v, %v; %v, %v", sa, sb, errA, errB)
			}
			talk(t, sa, sb)
			talk(t, sb, sa)
		})
	}
}

// TestSecretsOfAnyKindDoNotPrint: what holds key material prints none of it.
func TestSecretsOfAnyKindDoNotPrint(t *testing.T) {
	r, _ := knownSessions(t, Options{})
	key, err := r.secret.trafficKey(AES128GCM, RoleA)
	if err != nil {
		t.Fatal(err)
	}
	holders := []any{r, key}
	for _, tep := range TEPs() {
		k, err := newKeyPair(tep)
		if err != nil {
			t.Fatal(err)
		}
		holders = append(holders, k)
	}
	for _, h := range holders {
		for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%s", "%d"} {
			if got := fmt.Sprintf(verb, h); got != "[secret]" {
				t.Errorf("%T with %s prints %q", h, verb, got)
			}
		}
	}
}
