package stack

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

const lost, cut = tcpcrypt.ReasonFallback, tcpcrypt.ReasonStripped

var memoryStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newMemory() *memory {
	m := new(memory)
	m.init()
	return m
}

func TestMemory(t *testing.T) {
	dst, other := netip.MustParseAddrPort("203.0.113.1:80"), netip.MustParseAddrPort("203.0.113.1:81")
	at := func(d time.Duration) time.Time { return memoryStart.Add(d) }
	for _, tt := range []struct {
		name string
		do   func(m *memory)
		now  time.Duration
		want bool
	}{
		{"one failure", func(m *memory) { m.fail(dst, lost, at(0)) }, 0, false},
		{"two", func(m *memory) { m.fail(dst, lost, at(0)); m.fail(dst, cut, at(rememberFor)) }, rememberFor, true},
		{"two far apart", func(m *memory) { m.fail(dst, lost, at(0)); m.fail(dst, lost, at(rememberFor+1)) }, rememberFor + 1, false},
		{"of two ports", func(m *memory) { m.fail(dst, lost, at(0)); m.fail(other, lost, at(0)) }, 0, false},
		{"success between", func(m *memory) { m.fail(dst, lost, at(0)); m.succeed(dst); m.fail(dst, lost, at(0)) }, 0, false},
		{"success of another between", func(m *memory) { m.fail(dst, lost, at(0)); m.succeed(other); m.fail(dst, lost, at(0)) }, 0, true},
		{"success after", func(m *memory) { m.fail(dst, lost, at(0)); m.fail(dst, lost, at(0)); m.succeed(dst) }, 0, false},
		{"to the end", func(m *memory) { m.fail(dst, lost, at(0)); m.fail(dst, lost, at(0)) }, rememberFor - 1, true},
		{"after the end", func(m *memory) { m.fail(dst, lost, at(0)); m.fail(dst, lost, at(0)) }, rememberFor, false},
		{"a third does not prolong", func(m *memory) {
			m.fail(dst, lost, at(0))
			m.fail(dst, lost, at(0))
			m.fail(dst, lost, at(rememberFor/2))
		}, rememberFor, false},
		{"after the end it takes two again", func(m *memory) {
			m.fail(dst, lost, at(0))
			m.fail(dst, lost, at(0))
			m.fail(dst, lost, at(rememberFor))
		}, rememberFor, false},
		{"forgotten", func(m *memory) {
			m.fail(dst, lost, at(0))
			m.fail(dst, lost, at(0))
			if n := m.forget(dst.Addr(), at(0)); n != 1 {
				t.Errorf("forgot %d, want 1", n)
			}
		}, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMemory()
			tt.do(m)
			if got := m.knows(dst, at(tt.now)); got != tt.want {
				t.Errorf("remembered: %v, want %v", got, tt.want)
			}
			if got := len(m.list(at(tt.now))) == 1; got != tt.want {
				t.Errorf("listed: %v, want %v", got, tt.want)
			}
		})
	}
}

func TestMemoryTellsWhatItKnows(t *testing.T) {
	m, dst := newMemory(), netip.MustParseAddrPort("[2001:db8::1]:443")
	if _, news := m.fail(dst, lost, memoryStart); news {
		t.Error("one failure is news")
	}
	now := memoryStart.Add(time.Minute)
	if until, news := m.fail(dst, cut, now); !news || !until.Equal(now.Add(rememberFor)) {
		t.Errorf("until %v, news %v", until, news)
	}
	if _, news := m.fail(dst, cut, now); news {
		t.Error("what is known is news")
	}
	want := Remembered{Peer: dst, Reason: cut, Since: now, Until: now.Add(rememberFor)}
	if got := m.list(now); len(got) != 1 || got[0] != want {
		t.Errorf("listed %+v, want %+v", got, want)
	}
	if n := m.forget(netip.MustParseAddr("2001:db8::2"), now); n != 0 || !m.knows(dst, now) {
		t.Errorf("forgot %d at another address", n)
	}
	if n := m.forget(netip.Addr{}, now); n != 1 || m.knows(dst, now) {
		t.Errorf("forgot %d of all", n)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	m := newMemory()
	dst := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
	}
	const n = 3 * maxRemembered
	for i := range n {
		m.fail(dst(i), lost, memoryStart)
		m.fail(dst(i), lost, memoryStart)
	}
	if len(m.byDst) != maxRemembered || m.order.Len() != maxRemembered {
		t.Errorf("%d and %d, want %d", len(m.byDst), m.order.Len(), maxRemembered)
	}
	for i, want := range map[int]bool{n - 1: true, n - maxRemembered: true, n - maxRemembered - 1: false} {
		if m.knows(dst(i), memoryStart) != want {
			t.Error(fmt.Sprint(i), "remembered:", !want)
		}
	}
}
