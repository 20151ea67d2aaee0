package tcpcrypt

import (
	"container/list"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// CacheOptions bounds a Cache. The zero value is what most callers want.
type CacheOptions struct {
	Entries int           // sessions kept; 0: 4096
	PerPeer int           // of one peer address; 0: 64
	Age     time.Duration // a session's life since its fresh key exchange; 0: 1 h
}

// A Cache keeps sessions to be resumed, in memory alone (RFC 8548, section 3.5). Of
// each it has a chain of secrets, from ss[i] on, and moves on to ss[i+1] before it gives
// ss[i] to anyone: whatever races, is lost or fails, no secret secures two connections.
// One chain serves both directions, opens of ours and of the peer's.
//
// What leaves it is erased: at its age, by a timer, and to make room, oldest first, of
// the same peer address before all. All methods may be called from several goroutines
// at once. A closed Cache is empty and stays so.
type Cache struct {
	o CacheOptions

	mu      sync.Mutex // guards all that follows, and the chains
	closed  bool
	nextID  uint64
	claims  uint64                    // so far, of all chains
	order   *list.List                // of *chain, oldest first: they expire in this order
	byID    map[uint64]*list.Element  // of order
	byPeer  map[netip.Addr][]*chain   // oldest first
	byDest  map[destination][]*chain  // those put as active, oldest first
	byHalf  map[identifierHalf]*chain // every half that names a chain
	expirer *time.Timer               // nil before the first Put
}

// A destination is what an active open looks for.
type destination struct {
	peer netip.AddrPort
	tep  TEP
}

// A CachedSession is what can be told of a session in a Cache.
type CachedSession struct {
	ID      uint64         // for Cache.Drop; never used again
	Peer    netip.AddrPort // as it was put
	Active  bool           // opens of ours to Peer may resume it
	TEP     TEP
	AEAD    AEAD
	Role    Role   // ours in the original session
	Index   uint64 // the next i
	Created time.Time
	Expires time.Time
}

// NewCache returns an empty cache. Close it when it is not needed any more.
func NewCache(o CacheOptions) *Cache {
	if o.Entries <= 0 {
		o.Entries = defaultCacheEntries
	}
	if o.PerPeer <= 0 {
		o.PerPeer = defaultCachePerPeer
	}
	if o.Age <= 0 {
		o.Age = defaultCacheAge
	}
	return &Cache{
		o: o, order: list.New(), byID: make(map[uint64]*list.Element), byPeer: make(map[netip.Addr][]*chain),
		byDest: make(map[destination][]*chain), byHalf: make(map[identifierHalf]*chain),
	}
}

// Put keeps a session that was just agreed on with peer: what Session.TakeNext gave. The
// cache owns r from now on, and empties it. active says that opens of ours to peer, the
// same address and port, may resume it; opens to us may in any case, from any address.
//
// id names the session in this cache. It is 0, and r is erased, if r is nil or spent, if
// the cache is closed, or if what follows r's secret is in a cache already, this one or
// the one that r was claimed from: a claim is never given back.
func (c *Cache) Put(peer netip.AddrPort, active bool, r *Resumable) (id uint64) {
	if r == nil || r.secret == nil || r.claimed {
		if r != nil {
			r.Wipe()
		}
		return 0
	}
	ch := newChain(unmapped(peer), active, r) // derives, so before the lock
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.expireLocked(now)
	if c.closed || c.knowsLocked(ch) {
		ch.wipe()
		return 0
	}
	c.nextID++
	ch.id, ch.created, ch.expires = c.nextID, now, now.Add(c.o.Age)
	c.makeRoomLocked(ch)
	c.insertLocked(ch)
	c.armLocked(now)
	return ch.id
}

// Claim takes the next secret of a session with peer, the same address and port, for an
// open of ours: for Options.Offer. The first of o's TEPs with a session that o allows
// counts, and of several sessions the one of which nothing was taken for longest. nil if
// there is none. The caller owns the result; it is spent, whatever comes of it.
func (c *Cache) Claim(peer netip.AddrPort, o Options) *Resumable {
	o, err := o.withDefaults()
	if err != nil {
		return nil
	}
	peer = unmapped(peer)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expireLocked(time.Now())
	for _, t := range o.TEPs {
		var best *chain
		for _, ch := range c.byDest[destination{peer, t}] {
			// Among those never claimed the newest: the peer is likelier to have it still.
			if o.mayResume(ch.next) && (best == nil || ch.claimed < best.claimed || ch.claimed == 0 && best.claimed == 0) {
				best = ch
			}
		}
		if best != nil {
			return c.claimLocked(best, 0)
		}
	}
	return nil
}

// Lookup takes the secret that half, the peer's, and t name, for an open of the peer's,
// whatever its address: for Options.Lookup. The secrets before it in its chain are
// erased. nil if nothing is known by it, or o does not allow it; then nothing changes.
// The caller owns the result; it is spent, whatever comes of it.
func (c *Cache) Lookup(t TEP, half [IdentifierHalfLen]byte, o Options) *Resumable {
	o, err := o.withDefaults()
	if err != nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expireLocked(time.Now())
	ch := c.byHalf[identifierHalf{t, half}]
	if ch == nil || !o.mayResume(ch.next) {
		return nil
	}
	return c.claimLocked(ch, slices.Index(ch.halves[:], half))
}

// claimLocked takes the nth secret after ch's next one, and erases those before it.
func (c *Cache) claimLocked(ch *chain, n int) *Resumable {
	c.unindexLocked(ch, n+1)
	r := ch.claim(n)
	c.indexLocked(ch, n+1)
	c.claims++
	ch.claimed = c.claims
	return r
}

// Drop forgets one session; false if it is not there.
func (c *Cache) Drop(id uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expireLocked(time.Now())
	e := c.byID[id]
	if e == nil {
		return false
	}
	c.removeLocked(e)
	return true
}

// Flush forgets all sessions with peer, and returns how many they were. The zero Addr
// stands for every peer.
func (c *Cache) Flush(peer netip.Addr) (sessions int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expireLocked(time.Now())
	if !peer.IsValid() {
		return c.clearLocked()
	}
	for _, ch := range slices.Clone(c.byPeer[peer.Unmap()]) {
		c.removeLocked(c.byID[ch.id])
		sessions++
	}
	return sessions
}

// Sessions returns what is in the cache, oldest first.
func (c *Cache) Sessions() []CachedSession {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expireLocked(time.Now())
	all := make([]CachedSession, 0, c.order.Len())
	for e := c.order.Front(); e != nil; e = e.Next() {
		ch := e.Value.(*chain)
		all = append(all, CachedSession{
			ID: ch.id, Peer: ch.peer, Active: ch.active, TEP: ch.next.tep, AEAD: ch.next.aead,
			Role: ch.next.role, Index: ch.next.index, Created: ch.created, Expires: ch.expires,
		})
	}
	return all
}

// Close erases everything and stops the timer. It may be called twice.
func (c *Cache) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.clearLocked()
}

// knowsLocked reports whether a half of ch's names a chain already: ch is a copy of what
// is here, for halves meet by accident once in 2^72.
func (c *Cache) knowsLocked(ch *chain) bool {
	for _, half := range ch.halves {
		if c.byHalf[identifierHalf{ch.next.tep, half}] != nil {
			return true
		}
	}
	return false
}

// makeRoomLocked removes what must go before ch can come.
func (c *Cache) makeRoomLocked(ch *chain) {
	if ch.active {
		if same := c.byDest[ch.destination()]; len(same) >= maxPerDestination {
			c.removeLocked(c.byID[same[0].id])
		}
	}
	if same := c.byPeer[ch.peer.Addr()]; len(same) >= c.o.PerPeer {
		c.removeLocked(c.byID[same[0].id])
	}
	if c.order.Len() >= c.o.Entries {
		c.removeLocked(c.order.Front())
	}
}

func (c *Cache) insertLocked(ch *chain) {
	c.byID[ch.id] = c.order.PushBack(ch)
	c.byPeer[ch.peer.Addr()] = append(c.byPeer[ch.peer.Addr()], ch)
	if ch.active {
		c.byDest[ch.destination()] = append(c.byDest[ch.destination()], ch)
	}
	c.indexLocked(ch, len(ch.halves))
}

// removeLocked erases a chain.
func (c *Cache) removeLocked(e *list.Element) {
	ch := c.order.Remove(e).(*chain)
	delete(c.byID, ch.id)
	without(c.byPeer, ch.peer.Addr(), ch)
	if ch.active {
		without(c.byDest, ch.destination(), ch)
	}
	c.unindexLocked(ch, len(ch.halves))
	ch.wipe()
	if c.order.Len() == 0 && c.expirer != nil {
		c.expirer.Stop()
	}
}

// without removes ch from m[k], and k with the last.
func without[K comparable](m map[K][]*chain, k K, ch *chain) {
	rest := slices.DeleteFunc(m[k], func(o *chain) bool { return o == ch })
	if len(rest) == 0 {
		delete(m, k)
	} else {
		m[k] = rest
	}
}

// indexLocked makes ch known by the last n of its halves. Where two chains meet in one,
// the first keeps it: the other is answered as if it were not known.
func (c *Cache) indexLocked(ch *chain, n int) {
	for _, half := range ch.halves[len(ch.halves)-n:] {
		if k := (identifierHalf{ch.next.tep, half}); c.byHalf[k] == nil {
			c.byHalf[k] = ch
		}
	}
}

// unindexLocked undoes indexLocked for the first n of ch's halves.
func (c *Cache) unindexLocked(ch *chain, n int) {
	for _, half := range ch.halves[:n] {
		if k := (identifierHalf{ch.next.tep, half}); c.byHalf[k] == ch {
			delete(c.byHalf, k)
		}
	}
}

func (c *Cache) clearLocked() (removed int) {
	for c.order.Len() > 0 {
		c.removeLocked(c.order.Front())
		removed++
	}
	return removed
}

// expireLocked removes what is too old. The timer does it too, but may be late.
func (c *Cache) expireLocked(now time.Time) {
	for e := c.order.Front(); e != nil && !now.Before(e.Value.(*chain).expires); e = c.order.Front() {
		c.removeLocked(e)
	}
}

// armLocked sets the timer to when the oldest chain expires.
func (c *Cache) armLocked(now time.Time) {
	e := c.order.Front()
	if e == nil {
		return
	}
	wait := e.Value.(*chain).expires.Sub(now)
	if c.expirer == nil {
		c.expirer = time.AfterFunc(wait, c.expire)
	} else {
		c.expirer.Reset(wait)
	}
}

// expire is what the timer calls.
func (c *Cache) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.expireLocked(now)
	c.armLocked(now)
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
