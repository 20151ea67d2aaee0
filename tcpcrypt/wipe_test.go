package tcpcrypt

import (
	"errors"
	"testing"
)

// A watchedPair is a keyPair that remembers what it gave away.
type watchedPair struct {
	keyPair
	es    []byte
	wiped bool
}

func (p *watchedPair) agree(peer []byte) ([]byte, error) {
	es, err := p.keyPair.agree(peer)
	p.es = es
	return es, err
}

func (p *watchedPair) wipe() {
	p.wiped = true
	p.keyPair.wipe()
}

func watchedExchange(t *testing.T, tep TEP, role Role) (*KeyExchange, *watchedPair) {
	t.Helper()
	k, err := newKeyExchange(Outcome{Encrypted: true, Role: role, TEP: tep, TEPByte: byte(tep)}, nil, DefaultAEADs())
	if err != nil {
		t.Fatal(err)
	}
	p := &watchedPair{keyPair: k.key}
	k.key = p
	return k, p
}

func TestKeyExchangeErasesWhatItUsed(t *testing.T) {
	for _, tep := range TEPs() {
		t.Run(tep.String(), func(t *testing.T) {
			a, ofA := watchedExchange(t, tep, RoleA)
			b, ofB := watchedExchange(t, tep, RoleB)
			_, init2, done, err := b.Feed(a.Start())
			if !done || err != nil {
				t.Fatalf("Feed(Init1): %v, %v", done, err)
			}
			if _, _, done, err := a.Feed(init2); !done || err != nil {
				t.Fatalf("Feed(Init2): %v, %v", done, err)
			}
			if a.Session().ID() != b.Session().ID() {
				t.Fatal("session IDs differ")
			}
			for name, p := range map[string]*watchedPair{"A": ofA, "B": ofB} {
				if !p.wiped {
					t.Errorf("%s keeps its ephemeral key", name)
				}
				if len(p.es) == 0 || !allZero(p.es) {
					t.Errorf("%s keeps the shared secret", name)
				}
			}
		})
	}
}

func TestFailedKeyExchangeErasesItsKey(t *testing.T) {
	k, p := watchedExchange(t, Curve25519, RoleB)
	if _, _, _, err := k.Feed([]byte("GET / HTTP/1.1")); !errors.Is(err, ErrBadMagic) {
		t.Fatalf("Feed: %v, want %v", err, ErrBadMagic)
	}
	if !p.wiped {
		t.Error("the ephemeral key is kept")
	}
}

func TestSessionErasesItsSecret(t *testing.T) {
	ss := &secret{b: [keyLen]byte{1, 2, 3}}
	s, err := newSession(sessionParams{secret: ss, tep: Curve25519, tepByte: byte(Curve25519), aead: AES128GCM})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Wipe()
	if ss.b != [keyLen]byte{} {
		t.Error("ss[i] is still there")
	}
}

func TestRekeyingErasesOldKeysAtBothEnds(t *testing.T) {
	a, b := sessions(t, Options{}, Options{}, 1000)
	type keys struct {
		mk  *secret
		key *trafficKey
	}
	old := map[string]keys{"sealer": {a.sealer.mk, a.sealer.key}, "opener": {b.opener.mk, b.opener.key}}
	a.Sealer().Rekey()
	frame, err := a.Sealer().Seal(nil, []byte("new keys"), Flags{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Opener().Open(frame); err != nil {
		t.Fatal(err)
	}
	for name, k := range old {
		if k.mk.b != [keyLen]byte{} || k.key.aead != nil || k.key.randomizer != [aeadNonceLen]byte{} {
			t.Errorf("the %s keeps its old keys", name)
		}
	}
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
