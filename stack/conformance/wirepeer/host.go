package wirepeer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// maxPacket is the largest IP packet.
const maxPacket = 65535

// A Host answers for every address whose packets its link brings. Segments that belong
// to no connection and no listener are answered with RST.
type Host struct {
	link Link
	wg   sync.WaitGroup
	isn  uint32 // of connections at birth; later ones are higher, so that ports can be used again
	born time.Time

	mu        sync.Mutex
	conns     map[flow]*Conn
	listeners map[netip.AddrPort]*Listener
	silent    map[netip.Addr]bool
	nextPort  uint16
	closed    bool
}

// A flow is a connection's name, seen from here.
type flow struct{ local, remote netip.AddrPort }

// The range of ports that Dial takes from.
const firstPort, lastPort = 20000, 59999

// isnTick is how often initial sequence numbers go up by one (RFC 9293, section 3.4.1).
const isnTick = 4 * time.Microsecond

// NewHost starts a host on the link, which it owns from now on.
func NewHost(link Link) *Host {
	h := &Host{link: link, isn: rand.Uint32(), born: time.Now(), conns: make(map[flow]*Conn), listeners: make(map[netip.AddrPort]*Listener), silent: make(map[netip.Addr]bool), nextPort: firstPort}
	h.wg.Go(h.run)
	return h
}

// Close ends all connections without a word and closes the link.
func (h *Host) Close() {
	h.mu.Lock()
	h.closed = true
	var conns []*Conn
	for _, c := range h.conns {
		conns = append(conns, c)
	}
	h.mu.Unlock()
	for _, c := range conns {
		c.fail(ErrHostClosed)
	}
	_ = h.link.Close()
	h.wg.Wait()
}

func (h *Host) run() {
	packet := make([]byte, maxPacket)
	for {
		n, err := h.link.Read(packet)
		if err != nil {
			return // closed: Close waits for us
		}
		if s, ok := ParseSegment(packet[:n]); ok {
			h.deliver(&s)
		}
	}
}

func (h *Host) deliver(s *Segment) {
	name := flow{s.Dst, s.Src}
	h.mu.Lock()
	c := h.conns[name]
	if l := h.listeners[s.Dst]; l != nil && s.Flags&(SYN|ACK|RST) == SYN && (c == nil || c.finished()) {
		c = newConn(h, name, l.script())
		h.conns[name] = c
		c.onEstablished = func() {
			select {
			case l.accepted <- c:
			default: // nobody takes them
			}
		}
	}
	silent := h.silent[s.Dst.Addr()]
	h.mu.Unlock()
	switch {
	case c != nil:
		c.receive(s)
	case !s.Flags.Has(RST) && !silent:
		h.send(refusal(s))
	}
}

// refusal is the RST that RFC 9293 (section 3.10.7.1) answers a stray segment with.
func refusal(s *Segment) *Segment {
	r := &Segment{Src: s.Dst, Dst: s.Src, Flags: RST}
	if s.Flags.Has(ACK) {
		r.Seq = s.Ack
	} else {
		r.Flags, r.Ack = RST|ACK, s.end()
	}
	return r
}

// Silence lets stray segments to that address go unanswered, as if nobody were there.
func (h *Host) Silence(a netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.silent[a] = true
}

// Send gives a segment to the link as it stands, of whatever connection or none.
func (h *Host) Send(s *Segment) { h.send(s) }

// send gives a segment to the link; a packet that the link refuses is a lost packet.
func (h *Host) send(s *Segment) { _, _ = h.link.Write(s.Packet()) }

// A Listener takes connections to one address and port.
type Listener struct {
	host     *Host
	local    netip.AddrPort
	script   func() Script
	accepted chan *Conn
}

// backlog bounds what has been established and not accepted.
const backlog = 1024

// Listen takes connections to local, each under a script of its own.
func (h *Host) Listen(local netip.AddrPort, script func() Script) (*Listener, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.listeners[local] != nil {
		return nil, fmt.Errorf("already listening on %v", local)
	}
	l := &Listener{host: h, local: local, script: script, accepted: make(chan *Conn, backlog)}
	h.listeners[local] = l
	return l, nil
}

// Accept returns the next connection whose handshake is complete.
func (l *Listener) Accept(ctx context.Context) (*Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("accept on %v: %w", l.local, ctx.Err())
	}
}

// Close takes no more connections; those there are stay.
func (l *Listener) Close() {
	l.host.mu.Lock()
	defer l.host.mu.Unlock()
	delete(l.host.listeners, l.local)
}

// Dial sends a SYN from local, which with port 0 gets a free one, and returns the
// connection once it is established. Errors: ErrRefused, ErrTimeout, the context's.
func (h *Host) Dial(ctx context.Context, local, remote netip.AddrPort, script Script) (*Conn, error) {
	c, err := h.Open(local, remote, script)
	if err != nil {
		return nil, err
	}
	if err := c.Established(ctx); err != nil {
		c.Forget()
		return nil, fmt.Errorf("dial %v: %w", remote, err)
	}
	return c, nil
}

// Open is Dial, but that it does not wait.
func (h *Host) Open(local, remote netip.AddrPort, script Script) (*Conn, error) {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil, ErrHostClosed
	}
	name := flow{local, remote}
	for tries := 0; local.Port() == 0; tries++ {
		candidate := flow{netip.AddrPortFrom(local.Addr(), h.nextPort), remote}
		if h.nextPort++; h.nextPort > lastPort {
			h.nextPort = firstPort
		}
		if h.conns[candidate] == nil {
			name = candidate
			break
		}
		if tries > lastPort-firstPort {
			h.mu.Unlock()
			return nil, errors.New("no port is free")
		}
	}
	c := newConn(h, name, script)
	h.conns[name] = c
	h.mu.Unlock()
	c.open()
	return c, nil
}

// forget makes the host answer for a connection no more, but with RST.
func (h *Host) forget(c *Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conns[c.name] == c {
		delete(h.conns, c.name)
	}
}
