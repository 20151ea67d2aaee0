package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// What a path may do to segments: cut them, join them, lose, double and reorder them.

// transferBothFamilies moves data and compares the accounts of both ends.
func transferBothFamilies(t *testing.T, n *network, a, b *daemon, up, down int64) {
	t.Helper()
	for _, f := range families {
		to := netip.AddrPortFrom(n.b.addr(f.v6), 80)
		local, err := n.a.transfer(soon(t), to, up, down)
		if err != nil {
			t.Errorf("%s: %v", f.name, err)
			continue
		}
		checkBothEnds(t, a, b, local, to, up+8, down+32)
	}
}

func TestPathsOfEverySize(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		lay  func(t *testing.T, n *network)
		size int64
	}{
		{"segments cut by the hosts", func(t *testing.T, n *network) {
			t.Helper()
			for _, h := range []*node{n.a, n.b} {
				h.run(t, "ip", "link", "set", "dev", "eth0", "gso_max_segs", "1", "gro_max_size", "1")
				n.onRouter(t, "ip", "link", "set", "dev", h.RouterInterface(), "gso_max_segs", "1", "gro_max_size", "1")
			}
		}, 1_000_000},
		{"MSS clamped to 88", func(t *testing.T, n *network) {
			t.Helper()
			n.box(t, filter("tcp flags & syn != 0 tcp option maxseg size set 88"))
		}, 100_000},
		{"MSS clamped to 536", func(t *testing.T, n *network) {
			t.Helper()
			n.box(t, filter("tcp flags & syn != 0 tcp option maxseg size set 536"))
		}, 1_000_000},
		{"MSS clamped above the MTU", func(t *testing.T, n *network) {
			t.Helper()
			n.box(t, filter("tcp flags & syn != 0 tcp option maxseg size set 9000"))
		}, 1_000_000},
		{"jumbo frames", func(t *testing.T, n *network) {
			t.Helper()
			n.mtu(t, 9000, n.a, n.b)
		}, 1_000_000},
		{"a smaller MTU behind the router", func(t *testing.T, n *network) {
			t.Helper()
			n.mtu(t, 1280, n.b)
		}, 1_000_000},
		{"a smaller MTU before the router", func(t *testing.T, n *network) {
			t.Helper()
			n.mtu(t, 1300, n.a)
		}, 1_000_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t, networkOptions{})
			c.lay(t, n)
			a, b := n.daemonsUnder(t, require, require, "")
			n.b.serveTransfers(t, 80)
			transferBothFamilies(t, n, a, b, c.size, c.size)
		})
	}
}

// mtu sets that of both ends of the hosts' links.
func (n *network) mtu(t *testing.T, size int, hosts ...*node) {
	t.Helper()
	for _, h := range hosts {
		h.run(t, "ip", "link", "set", "dev", "eth0", "mtu", fmt.Sprint(size))
		n.onRouter(t, "ip", "link", "set", "dev", h.RouterInterface(), "mtu", fmt.Sprint(size))
	}
}

// The path's MTU shrinks while data flows.
func TestMTUShrinksInMidTransfer(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	n.servicePorts(t)
	n.daemonsUnder(t, opportunistic, opportunistic, "")
	for _, f := range families {
		client, service := n.pairOf(t, f.v6)
		mustWrite(t, "client", client, marker)
		mustRead(t, "service", service, marker)
		n.mtu(t, 1280, n.b)
		const size = 3_000_000
		written := make(chan error, 2)
		for _, c := range []interface {
			Write([]byte) (int, error)
			CloseWrite() error
		}{client, service} {
			go func() {
				_, err := c.Write(streamBytes(size))
				if err == nil {
					err = c.CloseWrite()
				}
				written <- err
			}()
		}
		mustReadAll(t, service, streamBytes(size))
		mustReadAll(t, client, streamBytes(size))
		for range 2 {
			if err := <-written; err != nil {
				t.Errorf("%s: %v", f.name, err)
			}
		}
		n.mtu(t, 1500, n.b)
	}
}

// A box may cut the stream anew: into single bytes where the key exchange is, and join
// what is small.
func TestStreamsAreCutAnew(t *testing.T) {
	t.Parallel()
	// Each keeps its state by connection and direction.
	type direction struct{ from, to netip.AddrPort }
	for _, c := range []struct {
		name string
		hook func() func(s *wirepeer.Segment) []*wirepeer.Segment
	}{
		{"single bytes", func() func(s *wirepeer.Segment) []*wirepeer.Segment {
			base := make(map[direction]uint32)
			return func(s *wirepeer.Segment) []*wirepeer.Segment {
				d := direction{s.Src, s.Dst}
				if s.Flags.Has(wirepeer.SYN) {
					base[d] = s.Seq + 1
				}
				if len(s.Payload) < 2 || int32(s.Seq-base[d]) > 400 {
					return []*wirepeer.Segment{s}
				}
				return cut(s, 1)
			}
		}},
		{"seven bytes, the later ones first", func() func(s *wirepeer.Segment) []*wirepeer.Segment {
			base := make(map[direction]uint32)
			return func(s *wirepeer.Segment) []*wirepeer.Segment {
				d := direction{s.Src, s.Dst}
				if s.Flags.Has(wirepeer.SYN) {
					base[d] = s.Seq + 1
				}
				if len(s.Payload) < 2 || int32(s.Seq-base[d]) > 400 {
					return []*wirepeer.Segment{s}
				}
				parts := cut(s, 7)
				slices.Reverse(parts)
				return parts
			}
		}},
		{"joined", func() func(s *wirepeer.Segment) []*wirepeer.Segment {
			held := make(map[direction]*wirepeer.Segment)
			return func(s *wirepeer.Segment) []*wirepeer.Segment {
				const full = 1300
				d := direction{s.Src, s.Dst}
				h := held[d]
				delete(held, d)
				switch {
				case h != nil && h.Seq+uint32(len(h.Payload)) == s.Seq && len(s.Payload) > 0 && len(h.Payload)+len(s.Payload) <= full:
					// Only one's header survives: the later one's. If one had the option,
					// so has the whole.
					if h.HasENO() && !s.HasENO() {
						s.Options = h.Options
					}
					s.Seq, s.Payload = h.Seq, slices.Concat(h.Payload, s.Payload)
				case h != nil:
					return []*wirepeer.Segment{h, s}
				case len(s.Payload) > 0 && len(s.Payload) < 200 && s.Flags&(wirepeer.FIN|wirepeer.SYN|wirepeer.RST) == 0 && !s.Flags.Has(wirepeer.PSH):
					held[d] = s
					return nil
				}
				return []*wirepeer.Segment{s}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t, networkOptions{})
			a, b := n.daemonsUnder(t, require, require, "")
			n.b.serveTransfers(t, 80)
			n.intercept(t, c.hook())
			transferBothFamilies(t, n, a, b, 50_000, 50_000)
		})
	}
}

// cut makes segments of n bytes at most of one. The option is in each, as it would be in
// each segment of that sender's.
func cut(s *wirepeer.Segment, n int) (parts []*wirepeer.Segment) {
	seq := s.Seq
	for part := range slices.Chunk(s.Payload, n) {
		p := *s
		p.Seq, p.Payload = seq, part
		p.Flags &^= wirepeer.FIN | wirepeer.PSH
		seq += uint32(len(part))
		parts = append(parts, &p)
	}
	parts[len(parts)-1].Flags = s.Flags
	return parts
}

// Every one of a connection's first segments may be lost, come twice or come late, and
// the ends agree all the same.
func TestLossInTheHandshakeDoesNotSplitTheEnds(t *testing.T) {
	t.Parallel()
	const first = 8 // SYN, SYN-ACK, ACK, Init1, ACK, Init2, and what follows
	for _, p := range []struct{ a, b string }{{opportunistic, opportunistic}, {require, require}} {
		t.Run(p.a, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t, networkOptions{})
			a, _ := n.daemonsUnder(t, p.a, p.b, "")
			n.b.serveTransfers(t, 80)
			var mu sync.Mutex
			flows := make(map[flowID]*disturbance)
			n.intercept(t, func(s *wirepeer.Segment) []*wirepeer.Segment {
				mu.Lock()
				defer mu.Unlock()
				d := flows[flowOf(s)]
				if d == nil {
					i := len(flows)
					d = &disturbance{what: i / first, at: i % first}
					flows[flowOf(s)] = d
				}
				return d.pass(s)
			})
			errs := make([]error, len(disturbances)*first)
			var wg sync.WaitGroup
			for i := range errs {
				wg.Go(func() {
					local, err := n.a.transfer(soon(t), netip.AddrPortFrom(n.b.addr(i%2 == 1), 80), 20_000, 20_000)
					if err != nil {
						err = fmt.Errorf("from %v: %w", local, err)
					}
					errs[i] = err
				})
			}
			wg.Wait()
			mu.Lock()
			defer mu.Unlock()
			for _, err := range errs {
				if err != nil {
					t.Error(err)
				}
			}
			if len(flows) != len(errs) {
				t.Errorf("%d connections on the wire, want %d", len(flows), len(errs))
			}
			for id, d := range flows {
				if d.count <= d.at {
					t.Errorf("%v: %d segments only", id, d.count)
				}
			}
			ids, fallbacks := make(map[string]bool), 0
			for _, c := range a.conns(t) {
				if p.a == opportunistic && is(c.Reason, "fallback") { // both its SYNs were lost
					fallbacks++
					continue
				}
				if !c.Encrypted || c.SessionID == nil || ids[*c.SessionID] {
					t.Errorf("not encrypted, or in a session that is another's: %v", c)
					continue
				}
				ids[*c.SessionID] = true
			}
			if fallbacks > 1 {
				t.Errorf("%d connections fell back, want the one whose first two SYNs were lost", fallbacks)
			}
		})
	}
}

// What happens to one segment of a connection.
var disturbances = []string{"lost", "doubled", "late", "lost with the next"}

type disturbance struct {
	what, at, count int
	held            *wirepeer.Segment
}

func (d *disturbance) pass(s *wirepeer.Segment) []*wirepeer.Segment {
	i := d.count
	d.count++
	out := []*wirepeer.Segment{s}
	if d.held != nil {
		out, d.held = append(out, d.held), nil
	}
	switch {
	case i == d.at && disturbances[d.what] == "lost", (i == d.at || i == d.at+1) && disturbances[d.what] == "lost with the next":
		return nil
	case i == d.at && disturbances[d.what] == "doubled":
		return []*wirepeer.Segment{s, s}
	case i == d.at && disturbances[d.what] == "late":
		d.held = s
		return nil
	}
	return out
}
