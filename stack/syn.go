package stack

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A pending is a SYN that was let in and whose connection is not complete: what its
// handler needs, and what the packets that arrive meanwhile tell it.
type pending struct {
	id   nstack.TransportEndpointID
	dir  Direction
	dst  netip.AddrPort // outbound: whom the program dials
	rule Rule
	syn  []byte // outbound: IP and TCP header, for an ICMP error to quote; inbound: TCP options
	neg  *ENO   // inbound: negotiates for the wire side; nil under bypass. acceptIn's

	icmp chan icmpError // room for one; what a router says of our SYN

	// Guarded by synTable.mu.
	last   time.Time     // when the SYN was seen last
	gap    time.Duration // between the last two; zero: seen once
	proved bool          // inbound: the handshake is complete, so the remote is there
}

// A dstDials is the pending dials to one address and port.
type dstDials struct {
	n      int
	byPort map[uint16]*pending  // by S's port
	early  map[uint16]icmpError // errors that came before Connect had told us the port
}

// maxEarlyICMP bounds dstDials.early.
const maxEarlyICMP = 16

// A synTable counts and bounds what is pending.
type synTable struct {
	limits Limits
	timing timing

	mu       sync.Mutex
	closed   bool
	pending  map[nstack.TransportEndpointID]*pending
	dials    int
	halfOpen int
	inbound  []*pending // oldest first; some are not pending any more
	byDst    map[netip.AddrPort]*dstDials
}

type admission uint8

const (
	admitted admission = iota
	repeated           // the SYN is known and in work
	full               // beyond the limits
	stopping
)

func (t *synTable) init(l Limits, tm timing) {
	t.limits, t.timing = l, tm
	t.pending = make(map[nstack.TransportEndpointID]*pending)
	t.byDst = make(map[netip.AddrPort]*dstDials)
}

// seen notes a repeated SYN and reports whether it is one.
func (t *synTable) seen(id nstack.TransportEndpointID, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.pending[id]
	if ok {
		p.gap, p.last = now.Sub(p.last), now
	}
	return ok
}

// add admits p, or says why not. Whoever admits starts the handler, which calls remove.
// started is called under the lock if p is admitted: what it does is done before close
// returns, or not at all.
func (t *synTable) add(p *pending, now time.Time, started func()) admission {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return stopping
	}
	if _, ok := t.pending[p.id]; ok {
		return repeated
	}
	if p.dir == Inbound {
		if t.halfOpen >= 2*t.limits.HalfOpen {
			return full
		}
		t.halfOpen++
		t.inbound = append(t.inbound, p)
	} else {
		d := t.byDst[p.dst]
		if t.dials >= t.limits.Dials || d != nil && d.n >= t.limits.DialsPerDst {
			return full
		}
		if d == nil {
			d = new(dstDials)
			t.byDst[p.dst] = d
		}
		d.n++
		t.dials++
	}
	p.last = now
	t.pending[p.id] = p
	started()
	return admitted
}

// victim returns the oldest inbound one whose remote has proved nothing, if there are
// more than the limit: under a flood of forged SYNs those of honest remotes, which are
// complete after one round trip, get through. nil if none is to go.
func (t *synTable) victim() *pending {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.halfOpen > t.limits.HalfOpen && len(t.inbound) > 0 {
		p := t.inbound[0]
		t.inbound = t.inbound[1:]
		if t.pending[p.id] == p && !p.proved {
			return p
		}
	}
	return nil
}

// prove notes that p's handshake is complete.
func (t *synTable) prove(p *pending) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.proved = true
}

// get returns the pending with this tuple, nil if there is none.
func (t *synTable) get(id nstack.TransportEndpointID) *pending {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pending[id]
}

// remove forgets p; port is the one of S that it dialled from, 0 if none.
func (t *synTable) remove(p *pending, port uint16) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.pending, p.id)
	if p.dir == Inbound {
		if t.halfOpen--; t.halfOpen == 0 || len(t.inbound) > 4*t.limits.HalfOpen {
			t.inbound = slices.DeleteFunc(t.inbound, func(p *pending) bool { return t.pending[p.id] != p })
		}
		return
	}
	t.dials--
	d := t.byDst[p.dst]
	delete(d.byPort, port)
	if d.n--; d.n == 0 {
		delete(t.byDst, p.dst)
	}
}

// dialled tells which port of S p's wire side has got, so that ICMP errors find p.
func (t *synTable) dialled(p *pending, port uint16) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.byDst[p.dst]
	if d.byPort == nil {
		d.byPort = make(map[uint16]*pending)
	}
	d.byPort[port] = p
	if e, ok := d.early[port]; ok {
		delete(d.early, port)
		p.tell(e)
	}
}

// icmp gives an ICMP error about a SYN of ours from port to dst to its dial.
func (t *synTable) icmp(port uint16, dst netip.AddrPort, e icmpError) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.byDst[dst]
	if d == nil {
		return
	}
	if p := d.byPort[port]; p != nil {
		p.tell(e)
		return
	}
	if d.early == nil {
		d.early = make(map[uint16]icmpError)
	}
	if len(d.early) < maxEarlyICMP {
		d.early[port] = e
	}
}

func (p *pending) tell(e icmpError) {
	select {
	case p.icmp <- e:
	default: // an earlier one has not been read
	}
}

// givenUp returns when the program is taken to have given up if it does not repeat its
// SYN before.
func (t *synTable) givenUp(p *pending) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.gap == 0 {
		return p.last.Add(t.timing.firstSYNGap)
	}
	return p.last.Add(2*p.gap + t.timing.synGapSlack)
}

// close refuses what comes from now on.
func (t *synTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
}

// handleUnmatched gets every TCP segment that belongs to no endpoint. It takes SYNs; of
// all others it reports false, and netstack answers them with RST.
func (s *Stack) handleUnmatched(id nstack.TransportEndpointID, pkt *nstack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	if len(h) < header.TCPMinimumSize {
		return true
	}
	if h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst|header.TCPFlagFin) != header.TCPFlagSyn {
		return false
	}
	now := time.Now()
	if s.syns.seen(id, now) {
		return true
	}
	p := &pending{id: id, icmp: make(chan icmpError, 1)}
	fwd := s.outbound
	if dst := local(id); s.isStack(dst.Addr()) {
		p.dir, fwd = Inbound, s.inbound
		p.syn = append([]byte(nil), h.Options()...)
	} else {
		p.dst = dst
		p.rule = s.outboundRule(remote(id), dst)
		p.syn = append(append([]byte(nil), pkt.NetworkHeader().Slice()...), h...)
	}
	switch s.syns.add(p, now, func() { s.wg.Add(1) }) {
	case repeated, stopping:
		return true // swallowed: the program repeats it once more, after us if we are stopping
	case full:
		s.overLimit(p, pkt)
		return true
	case admitted:
	}
	if v := s.syns.victim(); v != nil {
		s.counters.dropped.Add(1)
		s.abortHandshake(v.id)
	}
	// The forwarder starts p's handler unless the segment is malformed: its own limit is
	// above ours, and it knows no tuple that we do not.
	if !fwd.HandlePacket(id, pkt) {
		s.syns.remove(p, 0)
		s.wg.Done()
		return true
	}
	return true
}

// overLimit deals with a SYN beyond the limits: opportunistic ones pass in clear, all
// others are dropped and the program repeats them.
func (s *Stack) overLimit(p *pending, pkt *nstack.PacketBuffer) {
	if p.dir == Inbound || p.rule.Policy == Require || !s.passInClear(p, pkt) {
		s.counters.dropped.Add(1)
		return
	}
	s.counters.limited.Add(1)
}

func (s *Stack) isStack(a netip.Addr) bool { return a == s.opt.Stack4 || a == s.opt.Stack6 }

func (s *Stack) outboundRule(src, dst netip.AddrPort) Rule {
	if s.opt.Outbound == nil {
		return Rule{}
	}
	return s.opt.Outbound(src, dst)
}
