package stack

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A connTable is the connections there are and the last ones that were.
type connTable struct {
	mu     sync.Mutex
	empty  *sync.Cond // len(live) is 0
	nextID uint64
	live   map[uint64]*conn
	closed []closedConn // oldest first, at most maxClosedConns
}

type closedConn struct {
	at   time.Time
	conn Conn
}

func (t *connTable) init() {
	t.empty = sync.NewCond(&t.mu)
	t.live = make(map[uint64]*conn)
}

// add makes a connection that is opening.
func (t *connTable) add(s *Stack, dir Direction, local, remote netip.AddrPort, rule Rule) *conn {
	c := newConn(s, dir, local, remote, rule)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nextID++
	c.id = t.nextID
	t.live[c.id] = c
	return c
}

// open marks c as open.
func (t *connTable) open(c *conn) { c.state.Store(uint32(Open)) }

// end moves c to the closed ones. Further calls do nothing.
func (t *connTable) end(c *conn) {
	if State(c.state.Swap(uint32(Closed))) == Closed {
		return
	}
	snap := c.snapshot()
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.live, c.id)
	t.expireLocked(now)
	if len(t.closed) == maxClosedConns {
		t.closed = slices.Delete(t.closed, 0, 1)
	}
	t.closed = append(t.closed, closedConn{now, snap})
	if len(t.live) == 0 {
		t.empty.Broadcast()
	}
}

// drop forgets c, which was opening, without a line among the closed ones.
func (t *connTable) drop(c *conn) {
	c.state.Store(uint32(Closed))
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.live, c.id)
	if len(t.live) == 0 {
		t.empty.Broadcast()
	}
}

func (t *connTable) expireLocked(now time.Time) {
	n := 0
	for n < len(t.closed) && now.Sub(t.closed[n].at) > closedConnsFor {
		n++
	}
	t.closed = slices.Delete(t.closed, 0, n)
}

// snapshot is Stack.Conns.
func (t *connTable) snapshot(closed bool) []Conn {
	t.mu.Lock()
	var out []Conn
	if closed {
		t.expireLocked(time.Now())
		for i := range t.closed {
			out = append(out, t.closed[i].conn)
		}
	}
	live := t.listLocked()
	t.mu.Unlock()
	for _, c := range live {
		// One that ended since is listed as closed, once.
		out = append(out, c.snapshot())
	}
	slices.SortFunc(out, func(a, b Conn) int { return int(int64(a.ID) - int64(b.ID)) })
	return out
}

func (t *connTable) listLocked() []*conn {
	out := make([]*conn, 0, len(t.live))
	for _, c := range t.live {
		out = append(out, c)
	}
	return out
}

// find returns the connection that is opening or open and goes by this tuple, the newest
// if there are several; nil for none.
func (t *connTable) find(local, remote netip.AddrPort) *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	var found *conn
	for _, c := range t.live {
		if (found == nil || c.id > found.id) && c.is(local, remote) {
			found = c
		}
	}
	return found
}

// get returns the connections of ids that are opening or open, all if there are no ids,
// each once.
func (t *connTable) get(ids []uint64) []*conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(ids) == 0 {
		return t.listLocked()
	}
	var out []*conn
	for _, id := range ids {
		if c := t.live[id]; c != nil && !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

// each calls f for every connection that is opening or open.
func (t *connTable) each(f func(*conn)) {
	t.mu.Lock()
	live := t.listLocked()
	t.mu.Unlock()
	for _, c := range live {
		f(c)
	}
}

// waitEmpty returns when no connection is opening or open.
func (t *connTable) waitEmpty() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.live) > 0 {
		t.empty.Wait()
	}
}
