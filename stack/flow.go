package stack

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
)

var errNoInject = errors.New("stack: no way to inject packets")

// A flowKey is a connection that passes in clear, seen from the local end.
type flowKey struct{ src, dst netip.AddrPort }

type flow struct {
	conn *conn  // its line in the table; nil: existed before us
	isn  uint32 // of the SYN that opened it; conn is not nil
	fin  atomic.Bool
	last atomic.Int64 // Unix time of the last packet, seconds
}

// A flowTable is the tuples that pass in clear. Only packets of the local end come by:
// answers reach the program directly.
type flowTable struct {
	n   atomic.Int64 // len(m): the fast way out when there are none
	max int

	mu     sync.RWMutex
	m      map[flowKey]*flow
	sweep  *time.Timer // nil while m is empty
	closed bool
}

func (t *flowTable) init(limit int, existing []Flow) {
	t.max = limit
	t.m = make(map[flowKey]*flow)
	for _, f := range existing {
		// Of require connections nothing is kept: the next segment is reset like any unknown one.
		if f.Policy != Require {
			t.add(flowKey{f.Src, f.Dst}, new(flow))
		}
	}
}

// add reports whether there was room.
func (t *flowTable) add(k flowKey, f *flow) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.m) >= t.max {
		return false
	}
	f.last.Store(time.Now().Unix())
	t.m[k] = f
	t.n.Store(int64(len(t.m)))
	if t.sweep == nil {
		t.sweep = time.AfterFunc(flowSweep, t.expire)
	}
	return true
}

func (t *flowTable) remove(k flowKey) {
	t.mu.Lock()
	f := t.m[k]
	delete(t.m, k)
	t.n.Store(int64(len(t.m)))
	t.mu.Unlock()
	f.end()
}

func (f *flow) end() {
	if f != nil && f.conn != nil {
		f.conn.s.conns.end(f.conn)
	}
}

// bypass is Stack.Bypass.
func (t *flowTable) bypass(packet []byte) bool {
	if t.n.Load() == 0 {
		return false
	}
	src, dst, segment, ok := parseTCP(packet)
	if !ok || len(segment) < header.TCPMinimumSize {
		return false
	}
	k := flowKey{src, dst}
	t.mu.RLock()
	f := t.m[k]
	t.mu.RUnlock()
	if f == nil {
		return false
	}
	h := header.TCP(segment)
	flags := h.Flags()
	switch {
	case flags.Contains(header.TCPFlagSyn) && !flags.Contains(header.TCPFlagAck):
		if f.conn == nil || f.isn != h.SequenceNumber() {
			t.remove(k) // a new connection with the tuple of an old one
			return false
		}
	case flags.Contains(header.TCPFlagRst):
		t.remove(k)
		return true
	case flags.Contains(header.TCPFlagFin):
		// Not the end: the program still acknowledges what comes.
		f.fin.Store(true)
	}
	f.last.Store(time.Now().Unix())
	if f.conn != nil {
		if n := ipLen(packet) - (len(packet) - len(segment)) - int(h.DataOffset()); n > 0 {
			f.conn.sent.Add(uint64(n))
		}
	}
	return true
}

// ipLen is the length in bytes of the packet that starts with b, as its IP header says.
func ipLen(b []byte) int {
	if header.IPVersion(b) == header.IPv4Version {
		return int(header.IPv4(b).TotalLength())
	}
	return header.IPv6MinimumSize + int(header.IPv6(b).PayloadLength())
}

// expire forgets what is over.
func (t *flowTable) expire() {
	var ended []*flow
	now := time.Now()
	t.mu.Lock()
	for k, f := range t.m {
		idle := now.Sub(time.Unix(f.last.Load(), 0))
		// Connections older than us may be idle for days, and cannot become more.
		if f.fin.Load() && idle > flowAfterFIN || f.conn != nil && idle > flowIdle {
			delete(t.m, k)
			ended = append(ended, f)
		}
	}
	t.n.Store(int64(len(t.m)))
	if len(t.m) == 0 || t.closed {
		t.sweep = nil
	} else {
		t.sweep.Reset(flowSweep)
	}
	t.mu.Unlock()
	for _, f := range ended {
		f.end()
	}
}

// close forgets everything.
func (t *flowTable) close() {
	t.mu.Lock()
	t.closed = true
	if t.sweep != nil {
		t.sweep.Stop()
		t.sweep = nil
	}
	m := t.m
	t.m = nil
	t.n.Store(0)
	t.mu.Unlock()
	for _, f := range m {
		f.end()
	}
}

// passInClear writes the SYN back to the link, as the kernel would have sent it without
// us, and lets the rest of its connection pass. It reports false if that cannot be done.
func (s *Stack) passInClear(p *pending, pkt *nstack.PacketBuffer) bool {
	v := pkt.ToView()
	defer v.Release()
	packet := v.AsSlice()
	_, _, segment, ok := parseTCP(packet)
	if !ok || len(segment) < header.TCPMinimumSize || s.opt.InjectPacket == nil {
		return false
	}
	h := header.TCP(segment)
	c := s.conns.add(s, Outbound, remote(p.id), p.dst, p.rule)
	c.decidePlain(reasonLimit)
	k := flowKey{remote(p.id), p.dst}
	if !s.flows.add(k, &flow{conn: c, isn: h.SequenceNumber()}) {
		s.conns.end(c)
		return false
	}
	s.conns.open(c)
	// The kernel may have left the checksum to the device.
	setChecksum(h, p.id.RemoteAddress, p.id.LocalAddress)
	if err := s.inject(packet); err != nil {
		s.flows.remove(k)
		return false
	}
	return true
}

func setChecksum(h header.TCP, src, dst tcpip.Address) {
	h.SetChecksum(0)
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, uint16(len(h)))
	h.SetChecksum(^checksum.Checksum(h, sum))
}
