package tcpcrypt

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// TestCacheAge: a timer erases what is too old, whether or not anyone asks; claims do
// not make a session younger.
func TestCacheAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCache(CacheOptions{})
		defer c.Close()
		a, b := chainEnds(Curve25519, AES128GCM)
		own, _ := a.Halves()
		first := put(t, c, peerOne, false, b)
		secrets := secretsOf(c, first)
		if s := c.Sessions()[0]; !s.Created.Equal(time.Now()) || s.Expires.Sub(s.Created) != time.Hour {
			t.Errorf("created %v, expires %v", s.Created, s.Expires)
		}
		time.Sleep(30 * time.Minute)
		later, _ := chainEnds(P256, AES128GCM)
		second := put(t, c, peerOne, true, later)
		time.Sleep(30*time.Minute - time.Nanosecond)
		synctest.Wait()
		c.mu.Lock()
		if c.order.Len() != 2 || secrets[0].b == (secretBytes{}) {
			t.Error("forgotten early")
		}
		c.mu.Unlock()
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		c.mu.Lock()
		wantErased(t, "at its age", secrets)
		if c.order.Len() != 1 || c.byID[second] == nil {
			t.Error("not the one that is too old was forgotten")
		}
		c.mu.Unlock()
		if c.Lookup(Curve25519, own, Options{}) != nil {
			t.Error("found though too old")
		}
		time.Sleep(29 * time.Minute)
		if c.Claim(peerOne, Options{}) == nil {
			t.Error("not found at 59 minutes")
		}
		secrets = secretsOf(c, second)
		time.Sleep(time.Minute)
		synctest.Wait()
		c.mu.Lock()
		wantErased(t, "the second", secrets)
		c.mu.Unlock()
	})
}

// TestCacheAgeWithoutTimer: whoever asks first gets nothing that is too old, however
// late the timer is.
func TestCacheAgeWithoutTimer(t *testing.T) {
	for name, ask := range map[string]func(*Cache, uint64, [IdentifierHalfLen]byte) bool{
		"claim": func(c *Cache, _ uint64, _ [IdentifierHalfLen]byte) bool { return c.Claim(peerOne, Options{}) != nil },
		"lookup": func(c *Cache, _ uint64, h [IdentifierHalfLen]byte) bool {
			return c.Lookup(Curve25519, h, Options{}) != nil
		},
		"list":  func(c *Cache, _ uint64, _ [IdentifierHalfLen]byte) bool { return len(c.Sessions()) != 0 },
		"drop":  func(c *Cache, id uint64, _ [IdentifierHalfLen]byte) bool { return c.Drop(id) },
		"flush": func(c *Cache, _ uint64, _ [IdentifierHalfLen]byte) bool { return c.Flush(netip.Addr{}) != 0 },
	} {
		synctest.Test(t, func(t *testing.T) {
			c := NewCache(CacheOptions{Age: time.Minute})
			defer c.Close()
			first, _ := chainEnds(P521, AES128GCM)
			put(t, c, peerTwo, false, first)
			a, b := chainEnds(Curve25519, AES128GCM)
			own, _ := a.Halves()
			id := put(t, c, peerOne, true, b)
			c.expirer.Stop()
			time.Sleep(time.Minute)
			if ask(c, id, own) {
				t.Errorf("%s: there at its age", name)
			}
		})
	}
}

// TestCacheTimer: it is one, it stops with the cache, and an empty cache has none.
func TestCacheTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCache(CacheOptions{Age: time.Minute})
		a, _ := chainEnds(Curve25519, AES128GCM)
		b, _ := chainEnds(Curve25519, AES128GCM)
		put(t, c, peerOne, true, a)
		put(t, c, peerOne, true, b)
		c.Close()
		if c.expirer.Stop() {
			t.Error("the timer of a closed cache runs")
		}
		c = NewCache(CacheOptions{Age: time.Minute})
		defer c.Close()
		a, _ = chainEnds(Curve25519, AES128GCM)
		put(t, c, peerOne, true, a)
		c.Flush(netip.Addr{})
		if c.expirer.Stop() {
			t.Error("the timer of an empty cache runs")
		}
		b, _ = chainEnds(Curve25519, AES128GCM)
		put(t, c, peerOne, true, b)
		time.Sleep(time.Minute)
		synctest.Wait()
		c.mu.Lock()
		defer c.mu.Unlock() // before Close
		if c.order.Len() != 0 {
			t.Error("the timer does not run again")
		}
	})
}
