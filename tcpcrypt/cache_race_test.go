package tcpcrypt

import (
	"fmt"
	"sync"
	"testing"
)

// connect opens a connection from one host to the other, whole.
func connect(t *testing.T, from, to *host) {
	t.Helper()
	n, p := from.open(t, to, Options{}), to.answer(t, Options{})
	p.ReceiveSYN(area(n.SYNOption(40)))
	n.ReceiveACK(area(p.SYNOption(40)), true)
	p.ReceiveACK(area(NonSYNOption()), false)
	finish(t, [2]*host{from, to}, [2]*Negotiation{n, p}, [2]bool{true, false})
}

// TestParallelOpens: connections opened at once, six at a time, in one direction or both,
// never share a secret, and each ends encrypted.
func TestParallelOpens(t *testing.T) {
	for _, both := range []bool{false, true} {
		t.Run(fmt.Sprintf("both=%v", both), func(t *testing.T) {
			hosts := twoHosts(t, CacheOptions{})
			connect(t, hosts[0], hosts[1])
			if both {
				connect(t, hosts[1], hosts[0])
			}
			slots := make(chan struct{}, 6)
			var wg sync.WaitGroup
			for i := range 12 {
				from, to := hosts[0], hosts[1]
				if both && i%2 == 1 {
					from, to = to, from
				}
				slots <- struct{}{}
				wg.Go(func() {
					connect(t, from, to)
					<-slots
				})
			}
			wg.Wait()
			connect(t, hosts[0], hosts[1]) // a chain is left, whatever became of the others
			for _, h := range hosts {
				checkCache(t, h.cache)
				if h.resumed == 0 || len(h.ids) != map[bool]int{false: 14, true: 15}[both] {
					t.Errorf("%v: %d of %d were resumed", h.addr, h.resumed, len(h.ids))
				}
			}
		})
	}
}

// TestParallelClaims: of one chain, in both directions at once, each secret goes to one
// hand. Sessions come and go meanwhile.
func TestParallelClaims(t *testing.T) {
	c := newTestCache(t, CacheOptions{PerPeer: 3})
	a, b := chainEnds(Curve25519, AES128GCM)
	put(t, c, peerOne, true, a)
	var mu sync.Mutex
	seen := make(map[secretBytes]bool)
	got := func(r *Resumable) {
		if r == nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if seen[r.secret.b] {
			t.Errorf("ss[%d] of chain %d is in two hands", r.Index(), r.Chain())
		}
		seen[r.secret.b] = true
	}
	var wg sync.WaitGroup
	for i := range 6 {
		peerSide := &Resumable{secret: &secret{b: b.secret.b}, index: 1, tep: b.tep, aead: b.aead, role: RoleB}
		wg.Go(func() {
			for range 50 {
				if i%2 == 0 {
					got(c.Claim(peerOne, Options{}))
				} else {
					own, _ := peerSide.Halves()
					got(c.Lookup(Curve25519, own, Options{}))
					peerSide.Skip(1)
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 50 {
			x, _ := chainEnds(P256, AES128GCM)
			id := c.Put(peerTwo, i%2 == 0, x)
			c.Sessions()
			if i%3 == 0 {
				c.Drop(id)
			}
		}
		c.Flush(peerTwo.Addr())
	})
	wg.Wait()
	if len(seen) < 50 {
		t.Errorf("%d claims came to something", len(seen))
	}
	checkCache(t, c)
}
