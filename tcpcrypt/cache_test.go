package tcpcrypt

import (
	"crypto/rand"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var (
	peerOne   = netip.MustParseAddrPort("192.0.2.1:80")
	peerTwo   = netip.MustParseAddrPort("192.0.2.2:80")
	allowsAll = Options{TEPs: TEPs(), AEADs: AEADs()}
)

// chainEnds is what the two ends of a new session can put into their caches.
func chainEnds(tep TEP, aead AEAD) (a, b *Resumable) {
	a = &Resumable{secret: new(secret), index: 1, tep: tep, aead: aead, role: RoleA}
	b = &Resumable{secret: new(secret), index: 1, tep: tep, aead: aead, role: RoleB}
	rand.Read(a.secret.b[:])
	b.secret.b = a.secret.b
	return a, b
}

func newTestCache(t *testing.T, o CacheOptions) *Cache {
	t.Helper()
	c := NewCache(o)
	t.Cleanup(func() {
		c.Close()
		checkCache(t, c)
		if len(c.byHalf)+len(c.byID)+len(c.byPeer)+len(c.byDest)+c.order.Len() != 0 {
			t.Error("a closed cache is not empty")
		}
	})
	return c
}

// put puts a session that must be taken.
func put(t *testing.T, c *Cache, peer netip.AddrPort, active bool, r *Resumable) uint64 {
	t.Helper()
	id := c.Put(peer, active, r)
	if id == 0 {
		t.Fatal("the cache did not take a session")
	}
	return id
}

// checkCache walks all that a cache holds: the indexes say the same, the chains' halves
// are those of their secrets, and the bounds hold.
func checkCache(t *testing.T, c *Cache) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	halves, active, peers := 0, 0, make(map[netip.Addr]int)
	var before time.Time
	for e := c.order.Front(); e != nil; e = e.Next() {
		ch := e.Value.(*chain)
		if c.byID[ch.id] != e {
			t.Errorf("session %d is not known by its ID", ch.id)
		}
		if ch.expires.Before(before) {
			t.Errorf("session %d expires before the one it was put after", ch.id)
		}
		before = ch.expires
		peers[ch.peer.Addr()]++
		if !slices.Contains(c.byPeer[ch.peer.Addr()], ch) || ch.active != slices.Contains(c.byDest[ch.destination()], ch) {
			t.Errorf("session %d is missing by its peer or its destination", ch.id)
		}
		if ch.active {
			active++
		}
		want := ch.next.PeerHalves()
		if !slices.Equal(ch.halves[:], want) {
			t.Errorf("session %d has halves that are not its own", ch.id)
		}
		for _, h := range want {
			if c.byHalf[identifierHalf{ch.next.tep, h}] != ch {
				t.Errorf("session %d is not known by a half", ch.id)
			}
			halves++
		}
		if ch.last.index != ch.next.index+MaxAhead {
			t.Errorf("session %d: last is ss[%d], next is ss[%d]", ch.id, ch.last.index, ch.next.index)
		}
	}
	if len(c.byHalf) != halves || len(c.byID) != c.order.Len() || len(c.byPeer) != len(peers) {
		t.Errorf("%d halves, %d IDs and %d peers are left of %d, %d and %d", len(c.byHalf), len(c.byID), len(c.byPeer),
			halves, c.order.Len(), len(peers))
	}
	for _, all := range c.byDest {
		active -= len(all)
		if len(all) == 0 || len(all) > maxPerDestination {
			t.Errorf("%d sessions with one destination", len(all))
		}
	}
	if active != 0 {
		t.Errorf("the destinations miss %d sessions", active)
	}
	if c.order.Len() > c.o.Entries {
		t.Errorf("%d sessions, at most %d", c.order.Len(), c.o.Entries)
	}
	for a, n := range peers {
		if n > c.o.PerPeer {
			t.Errorf("%d sessions with %v, at most %d", n, a, c.o.PerPeer)
		}
	}
}

// TestCacheClaim: each claim is the next i, and what opens find depends on address,
// port, TEP and AEAD.
func TestCacheClaim(t *testing.T) {
	c := newTestCache(t, CacheOptions{})
	a, b := chainEnds(P256, AES256GCM)
	secrets := []secretBytes{a.secret.b, a.secret.nextSessionSecret().b}
	id := put(t, c, peerOne, true, a)
	if a.secret != nil {
		t.Error("the caller has the secret still")
	}
	passive := newTestCache(t, CacheOptions{})
	put(t, passive, peerTwo, false, b)

	for name, tt := range map[string]struct {
		peer netip.AddrPort
		o    Options
	}{
		"other address": {peerTwo, allowsAll},
		"other port":    {netip.AddrPortFrom(peerOne.Addr(), 81), allowsAll},
		"other TEP":     {peerOne, Options{TEPs: []TEP{P521, Curve25519}, AEADs: AEADs()}},
		"other AEAD":    {peerOne, Options{TEPs: TEPs(), AEADs: []AEAD{AES128GCM}}},
		"bad options":   {peerOne, Options{TEPs: TEPs(), AEADs: AEADs(), ShortNonce: 9}},
		"default AEADs": {peerOne, Options{}},
	} {
		if r := c.Claim(tt.peer, tt.o); r != nil {
			t.Errorf("%s: claimed", name)
		}
	}
	if r := passive.Claim(peerTwo, allowsAll); r != nil {
		t.Error("a session put as passive was claimed for an open of ours")
	}
	if got := c.Sessions(); got[0].Index != 1 {
		t.Fatalf("i is %d before any claim", got[0].Index)
	}
	mapped := netip.AddrPortFrom(netip.MustParseAddr("::ffff:192.0.2.1"), 80)
	for i, want := range secrets {
		r := c.Claim(mapped, allowsAll)
		if r == nil || r.secret.b != want || r.Index() != uint64(i+1) || r.Chain() != id || r.TEP() != P256 || r.AEAD() != AES256GCM {
			t.Fatalf("claim %d: %v of chain %d", i, r, r.Chain())
		}
		checkCache(t, c)
	}
	if got := c.Sessions(); len(got) != 1 || got[0].Index != 3 || got[0].ID != id || got[0].Peer != peerOne || !got[0].Active ||
		got[0].TEP != P256 || got[0].AEAD != AES256GCM || got[0].Role != RoleA {
		t.Errorf("sessions %+v", got)
	}
}

type secretBytes = [keyLen]byte

// TestCacheLookup: found from any address, by i to i+8; what is skipped is erased and
// never found again.
func TestCacheLookup(t *testing.T) {
	for n := range MaxAhead + 2 {
		c := newTestCache(t, CacheOptions{})
		a, b := chainEnds(Curve25519, AES128GCM)
		id := put(t, c, peerOne, false, b)
		skipped := secretsOf(c, id)[0]
		var earlier [][IdentifierHalfLen]byte
		for range n {
			own, _ := a.Halves()
			earlier = append(earlier, own)
			a.Skip(1)
		}
		own, _ := a.Halves()
		for _, o := range []Options{{TEPs: []TEP{P256}}, {AEADs: []AEAD{AES256GCM}}, {ShortNonce: -1}} {
			if c.Lookup(Curve25519, own, o) != nil {
				t.Fatal("found against the options")
			}
		}
		if c.Lookup(P256, own, Options{}) != nil || c.Sessions()[0].Index != 1 {
			t.Fatal("found by another TEP, or moved by nothing")
		}
		r := c.Lookup(Curve25519, own, Options{})
		if found := r != nil; found != (n <= MaxAhead) {
			t.Fatalf("%d ahead: found %v", n, found)
		}
		checkCache(t, c)
		if r == nil {
			continue
		}
		if r.secret.b != a.secret.b || r.Index() != a.Index() || r.Chain() != id {
			t.Errorf("%d ahead: ss[%d] of chain %d", n, r.Index(), r.Chain())
		}
		if n > 0 && skipped.b != (secretBytes{}) {
			t.Errorf("%d ahead: what was skipped is not erased", n)
		}
		for _, half := range append(earlier, own) {
			if c.Lookup(Curve25519, half, Options{}) != nil {
				t.Errorf("%d ahead: found once more", n)
			}
		}
	}
}

// TestCacheBothDirections: a chain that one end claims from is moved on for the other
// direction too, and two hosts that open to each other with one secret know neither.
func TestCacheBothDirections(t *testing.T) {
	one, two := newTestCache(t, CacheOptions{}), newTestCache(t, CacheOptions{})
	a, b := chainEnds(Curve25519, AES128GCM)
	put(t, one, peerTwo, true, a)
	put(t, two, peerOne, true, b)
	r, s := one.Claim(peerTwo, Options{}), two.Claim(peerOne, Options{})
	ofOne, _ := r.Halves()
	ofTwo, _ := s.Halves()
	if one.Lookup(Curve25519, ofTwo, Options{}) != nil || two.Lookup(Curve25519, ofOne, Options{}) != nil {
		t.Error("a secret claimed in one direction was found in the other")
	}
	r = one.Claim(peerTwo, Options{})
	ofOne, _ = r.Halves()
	if s := two.Lookup(Curve25519, ofOne, Options{}); s == nil || s.secret.b != r.secret.b {
		t.Error("the next one is not found")
	}
	if s := two.Claim(peerOne, Options{}); s == nil || s.Index() != 3 {
		t.Error("the direction that answered did not move on")
	}
	checkCache(t, one)
	checkCache(t, two)
}

// TestCacheRotation: opens at once take different sessions, the one at rest for longest
// first.
func TestCacheRotation(t *testing.T) {
	c := newTestCache(t, CacheOptions{})
	var ids []uint64
	for range 3 {
		a, _ := chainEnds(Curve25519, AES128GCM)
		ids = append(ids, put(t, c, peerOne, true, a))
	}
	want := []uint64{ids[2], ids[1], ids[0], ids[2], ids[1], ids[0]}
	var got []uint64
	for range want {
		got = append(got, c.Claim(peerOne, Options{}).Chain())
	}
	if !slices.Equal(got, want) {
		t.Errorf("claimed from %v, want %v", got, want)
	}

	// The TEPs' order is the caller's.
	p, _ := chainEnds(P256, AES128GCM)
	put(t, c, peerOne, true, p)
	for _, teps := range [][]TEP{{P256, Curve25519}, {Curve25519, P256}, {P521, P256, Curve25519}} {
		want := teps[0]
		if want == P521 {
			want = P256
		}
		if r := c.Claim(peerOne, Options{TEPs: teps}); r.TEP() != want {
			t.Errorf("%v: claimed one of %v", teps, r.TEP())
		}
	}
}

// TestCacheRefuses what is no unused secret of a session that it does not have.
func TestCacheRefuses(t *testing.T) {
	c := newTestCache(t, CacheOptions{})
	if c.Put(peerOne, true, nil) != 0 {
		t.Error("nil was put")
	}
	a, _ := chainEnds(Curve25519, AES128GCM)
	twin := &Resumable{secret: &secret{b: a.secret.b}, index: 1, tep: a.tep, aead: a.aead, role: a.role}
	twin.Skip(MaxAhead)
	put(t, c, peerOne, true, a)
	if c.Put(peerOne, true, a) != 0 {
		t.Error("a session was put twice")
	}
	elsewhere, _ := chainEnds(Curve25519, AES128GCM) // of it the cache knows nothing
	for name, r := range map[string]*Resumable{
		"claimed": elsewhere.Claim(), "claimed from the cache": c.Claim(peerOne, Options{}), "a copy": twin,
	} {
		ss := r.secret
		if c.Put(peerTwo, true, r) != 0 {
			t.Errorf("%s: put", name)
		}
		if r.secret != nil || ss.b != (secretBytes{}) {
			t.Errorf("%s: not erased", name)
		}
	}
	checkCache(t, c)
	c.Close()
	b, _ := chainEnds(Curve25519, AES128GCM)
	ss := b.secret
	if c.Put(peerOne, true, b) != 0 || b.secret != nil || ss.b != (secretBytes{}) || len(c.Sessions()) != 0 {
		t.Error("put into a closed cache, or not erased")
	}
	if c.Claim(peerOne, Options{}) != nil || c.Drop(1) || c.Flush(netip.Addr{}) != 0 {
		t.Error("a closed cache has something")
	}
	c.Close()
}

// secretsOf is all that the cache has of a session.
func secretsOf(c *Cache, id uint64) []*secret {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.byID[id].Value.(*chain)
	return []*secret{ch.next.secret, ch.last.secret}
}

func wantErased(t *testing.T, what string, secrets []*secret) {
	t.Helper()
	for _, s := range secrets {
		if s.b != (secretBytes{}) {
			t.Errorf("%s: a secret is still there", what)
		}
	}
}

// TestCacheBounds: the oldest goes, of the same destination, then of the same peer
// address, then of all, and is erased.
func TestCacheBounds(t *testing.T) {
	type session struct {
		peer   string
		active bool
	}
	many := func(n int, s session) []session { return slices.Repeat([]session{s}, n) }
	for name, tt := range map[string]struct {
		o    CacheOptions
		put  []session
		gone []uint64
	}{
		"destination":                 {CacheOptions{}, slices.Concat(many(1, session{"192.0.2.1:80", false}), many(9, session{"192.0.2.1:80", true})), []uint64{2}},
		"passive have no destination": {CacheOptions{}, slices.Concat(many(8, session{"192.0.2.1:80", true}), many(20, session{"192.0.2.1:80", false})), nil},
		"peer": {CacheOptions{PerPeer: 2}, []session{{"192.0.2.2:1", false}, {"192.0.2.1:1", false}, {"192.0.2.1:2", true},
			{"[::ffff:192.0.2.1]:3", false}, {"192.0.2.2:2", true}}, []uint64{2}},
		"all": {CacheOptions{Entries: 3}, []session{{"192.0.2.1:1", true}, {"192.0.2.2:1", false}, {"192.0.2.3:1", false},
			{"192.0.2.4:1", false}, {"192.0.2.5:1", true}}, []uint64{1, 2}},
		"peer before all": {CacheOptions{Entries: 3, PerPeer: 2}, []session{{"192.0.2.1:1", true}, {"192.0.2.2:1", false},
			{"192.0.2.2:2", true}, {"192.0.2.2:3", false}}, []uint64{2}},
		"defaults": {CacheOptions{}, many(65, session{"192.0.2.1:1", false}), []uint64{1}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newTestCache(t, tt.o)
			secrets := make(map[uint64][]*secret)
			for _, s := range tt.put {
				a, _ := chainEnds(Curve25519, AES128GCM)
				id := put(t, c, netip.MustParseAddrPort(s.peer), s.active, a)
				secrets[id] = secretsOf(c, id)
				checkCache(t, c)
			}
			for _, s := range c.Sessions() {
				delete(secrets, s.ID)
			}
			var gone []uint64
			for id, ss := range secrets {
				gone = append(gone, id)
				wantErased(t, name, ss)
			}
			slices.Sort(gone)
			if !slices.Equal(gone, tt.gone) {
				t.Errorf("%v are gone, want %v", gone, tt.gone)
			}
		})
	}
}

func TestCacheForgets(t *testing.T) {
	c := newTestCache(t, CacheOptions{})
	fill := func(peers ...netip.AddrPort) (ids []uint64, secrets []*secret) {
		for _, p := range peers {
			a, _ := chainEnds(Curve25519, AES128GCM)
			ids = append(ids, put(t, c, p, true, a))
			secrets = append(secrets, secretsOf(c, ids[len(ids)-1])...)
		}
		return ids, secrets
	}
	ids, secrets := fill(peerOne, peerOne, peerTwo)
	if !c.Drop(ids[1]) || c.Drop(ids[1]) || c.Drop(99) {
		t.Error("Drop does not say what it did")
	}
	wantErased(t, "dropped", secrets[2:4])
	checkCache(t, c)
	fill(netip.MustParseAddrPort("192.0.2.1:443"))
	if n := c.Flush(netip.MustParseAddr("::ffff:192.0.2.1")); n != 2 {
		t.Errorf("flushed %d, want 2", n)
	}
	wantErased(t, "flushed", secrets[:2])
	checkCache(t, c)
	if n := c.Flush(peerOne.Addr()); n != 0 {
		t.Errorf("flushed %d once more", n)
	}
	if got := c.Sessions(); len(got) != 1 || got[0].Peer != peerTwo || secrets[4].b == (secretBytes{}) {
		t.Errorf("left: %+v", got)
	}
	fill(peerOne)
	if n := c.Flush(netip.Addr{}); n != 2 || len(c.Sessions()) != 0 {
		t.Errorf("flushed %d, want all", n)
	}
	wantErased(t, "flushed with all", secrets)
	_, secrets = fill(peerOne)
	c.Close()
	wantErased(t, "closed", secrets)
}
