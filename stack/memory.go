package stack

import (
	"container/list"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// A Remembered is a destination that ENO does not reach: until Until, opportunistic
// connections to it offer no encryption.
type Remembered struct {
	Peer         netip.AddrPort
	Reason       tcpcrypt.Reason // fallback: SYNs with ENO are lost. stripped: what follows the handshake is
	Since, Until time.Time
}

// A memory is the destinations that ENO did not reach of late. One failure proves
// little, so it takes two without a success between.
type memory struct {
	mu    sync.Mutex
	byDst map[netip.AddrPort]*list.Element // of order
	order *list.List                       // of *failing, the one that failed last at the back
}

// A failing is one destination in a memory.
type failing struct {
	Remembered           // Until is zero as long as it is not remembered
	last       time.Time // failure
}

func (m *memory) init() {
	m.byDst, m.order = make(map[netip.AddrPort]*list.Element), list.New()
}

// fail notes a failure for why, and reports whether dst is remembered from now on, and
// until when.
func (m *memory) fail(dst netip.AddrPort, why tcpcrypt.Reason, now time.Time) (until time.Time, news bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.getLocked(dst, now)
	switch {
	case f == nil:
		if m.order.Len() >= maxRemembered {
			m.removeLocked(m.order.Front())
		}
		f = &failing{Remembered: Remembered{Peer: dst, Reason: why}, last: now}
		m.byDst[dst] = m.order.PushBack(f)
		return until, false
	case !f.Until.IsZero():
		return f.Until, false // opened before it was remembered
	}
	f.Reason, f.last = why, now
	f.Since, f.Until = now, now.Add(rememberFor)
	m.order.MoveToBack(m.byDst[dst])
	return f.Until, true
}

// succeed forgets dst: ENO reached it.
func (m *memory) succeed(dst netip.AddrPort) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.byDst[dst]; e != nil {
		m.removeLocked(e)
	}
}

// knows reports whether dst is remembered.
func (m *memory) knows(dst netip.AddrPort, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.getLocked(dst, now)
	return f != nil && !f.Until.IsZero()
}

// list returns what is remembered, oldest first.
func (m *memory) list(now time.Time) []Remembered {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Remembered
	for e := m.order.Front(); e != nil; e = e.Next() {
		if f := e.Value.(*failing); !f.Until.IsZero() && !f.over(now) {
			all = append(all, f.Remembered)
		}
	}
	slices.SortStableFunc(all, func(a, b Remembered) int { return a.Since.Compare(b.Since) })
	return all
}

// forget forgets the destinations at peer, the zero Addr for all, and returns how many
// were remembered.
func (m *memory) forget(peer netip.Addr, now time.Time) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for dst, e := range m.byDst {
		if peer.IsValid() && dst.Addr() != peer.Unmap() {
			continue
		}
		if f := e.Value.(*failing); !f.Until.IsZero() && !f.over(now) {
			n++
		}
		m.removeLocked(e)
	}
	return n
}

// getLocked returns what is known of dst, nil for nothing, or nothing recent.
func (m *memory) getLocked(dst netip.AddrPort, now time.Time) *failing {
	e := m.byDst[dst]
	if e == nil {
		return nil
	}
	f := e.Value.(*failing)
	if f.over(now) {
		m.removeLocked(e)
		return nil
	}
	return f
}

// over reports whether f does not count any more.
func (f *failing) over(now time.Time) bool {
	if f.Until.IsZero() {
		return now.Sub(f.last) > rememberFor
	}
	return !now.Before(f.Until)
}

func (m *memory) removeLocked(e *list.Element) {
	delete(m.byDst, m.order.Remove(e).(*failing).Peer)
}

// Remembered returns the destinations that ENO does not reach, oldest first.
func (s *Stack) Remembered() []Remembered { return s.memory.list(time.Now()) }

// Forget makes the next connection to peer, the zero Addr for every one, offer
// encryption again. It returns how many destinations were remembered.
func (s *Stack) Forget(peer netip.Addr) int { return s.memory.forget(peer, time.Now()) }
