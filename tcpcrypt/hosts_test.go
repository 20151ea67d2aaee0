package tcpcrypt

import (
	"net/netip"
	"sync"
	"testing"
)

// A host has a cache, and remembers all that it ever enabled encryption with.
type host struct {
	addr  netip.AddrPort
	cache *Cache

	mu      sync.Mutex
	ids     map[SessionID]bool
	secrets map[secretBytes]bool
	resumed int
}

// twoHosts returns two hosts that never met.
func twoHosts(t *testing.T, o CacheOptions) (hosts [2]*host) {
	t.Helper()
	for i, addr := range []netip.AddrPort{peerOne, peerTwo} {
		hosts[i] = &host{addr: addr, cache: newTestCache(t, o), ids: make(map[SessionID]bool), secrets: make(map[secretBytes]bool)}
	}
	return hosts
}

// open is an active open to peer.
func (h *host) open(t *testing.T, peer *host, o Options) *Negotiation {
	t.Helper()
	o.Offer = h.cache.Claim(peer.addr, o)
	return mustNegotiation(t, o, true)
}

// answer is a passive open.
func (h *host) answer(t *testing.T, o Options) *Negotiation {
	t.Helper()
	p := o
	o.Lookup = func(tep TEP, half [IdentifierHalfLen]byte) *Resumable { return h.cache.Lookup(tep, half, p) }
	return mustNegotiation(t, o, false)
}

// resume enables encryption with the secret that n agreed on.
func (h *host) resume(t *testing.T, n *Negotiation) *Session {
	t.Helper()
	ss := n.resumable().secret.b
	s, err := n.ResumedSession()
	if err != nil {
		t.Error(err)
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.secrets[ss] {
		t.Errorf("%v resumed with a secret that was enabled before", h.addr)
	}
	h.secrets[ss] = true
	h.resumed++
	return s
}

// keep puts what follows from s, and checks that nothing was used twice.
func (h *host) keep(t *testing.T, peer *host, active bool, s *Session) {
	t.Helper()
	h.mu.Lock()
	if h.ids[s.ID()] {
		t.Errorf("%v has session ID %v twice", h.addr, s.ID())
	}
	h.ids[s.ID()] = true
	h.mu.Unlock()
	next := s.TakeNext()
	if (next == nil) != s.Resumed() {
		t.Errorf("%v: resumed %v, and what follows is there: %v", h.addr, s.Resumed(), next != nil)
	}
	h.cache.Put(peer.addr, active, next)
}

// finish brings a connection that both ends have decided on to its sessions, and
// requires that they agree and can talk.
func finish(t *testing.T, hosts [2]*host, negotiations [2]*Negotiation, active [2]bool) {
	t.Helper()
	var out [2]Outcome
	for i, n := range negotiations {
		out[i], _ = n.Outcome()
	}
	if !out[0].Encrypted || !out[1].Encrypted || out[0].TEPByte != out[1].TEPByte || out[0].Role == out[1].Role {
		t.Errorf("the ends disagree: %+v and %+v", out[0], out[1])
		return
	}
	var s [2]*Session
	if out[0].Resumed {
		for i := range s {
			s[i] = hosts[i].resume(t, negotiations[i])
		}
	} else {
		s = exchangeKeys(t, negotiations)
	}
	if s[0] == nil || s[1] == nil {
		return
	}
	if s[0].ID() != s[1].ID() || s[0].AEAD() != s[1].AEAD() {
		t.Errorf("session %v with %v at one end, %v with %v at the other", s[0].ID(), s[0].AEAD(), s[1].ID(), s[1].AEAD())
		return
	}
	for i := range s {
		frame, err := s[i].Sealer().Seal(nil, []byte("hello"), Flags{})
		if err != nil {
			t.Error(err)
			return
		}
		if got, err := s[1-i].Opener().Open(frame); err != nil || string(got.Data) != "hello" {
			t.Errorf("%v sent, and the other got %q, %v", hosts[i].addr, got.Data, err)
		}
	}
	for i := range s {
		hosts[i].keep(t, hosts[1-i], active[i], s[i])
		s[i].Wipe()
	}
}

// exchangeKeys is a key exchange.
func exchangeKeys(t *testing.T, negotiations [2]*Negotiation) (s [2]*Session) {
	t.Helper()
	if o, _ := negotiations[0].Outcome(); o.Role == RoleB {
		back := exchangeKeys(t, [2]*Negotiation{negotiations[1], negotiations[0]})
		return [2]*Session{back[1], back[0]}
	}
	a, errA := negotiations[0].KeyExchange()
	b, errB := negotiations[1].KeyExchange()
	if errA != nil || errB != nil {
		t.Error(errA, errB)
		return s
	}
	_, init2, _, err := b.Feed(a.Start())
	if err == nil {
		_, _, _, err = a.Feed(init2)
	}
	if err != nil {
		t.Error(err)
	}
	return [2]*Session{a.Session(), b.Session()}
}
