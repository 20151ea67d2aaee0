package wirepeer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// How a connection ends before its time.
var (
	ErrRefused    = errors.New("connection refused (RST answered the SYN)")
	ErrReset      = errors.New("connection reset by peer (RST)")
	ErrTimeout    = errors.New("the peer acknowledges nothing any more")
	ErrHostClosed = errors.New("host closed")
	ErrAborted    = errors.New("aborted here")
)

// A state is TCP's, where it makes a difference to us.
type state int

const (
	stateClosed state = iota // not opened yet
	stateSYNSent
	stateSYNRcvd
	stateEstablished // and all that follow, until both directions have ended
)

// A Conn is one TCP connection. Methods may be called from several goroutines.
type Conn struct {
	host          *Host
	name          flow
	script        Script
	onEstablished func() // called once, locked

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever something below changes
	state   state
	err     error // sticky

	iss, irs  uint32
	una, nxt  uint32 // of what we sent
	maxSent   uint32 // highest nxt ever
	buf       []byte // stream bytes from seq bufSeq on: unacknowledged, unsent
	bufSeq    uint32
	fin       bool // our FIN goes behind buf
	peerWnd   uint32
	peerShift uint8
	peerMSS   int
	dupAcks   int
	rto       time.Duration
	progress  time.Time // last acknowledgement of something new
	timer     *time.Timer

	rcvNxt  uint32
	early   map[uint32][]byte // segments ahead of rcvNxt
	finSeq  uint32            // where the peer's FIN stands
	finSeen bool              // it has been seen, perhaps ahead of data
	finRcvd bool              // and everything before it
	in      []byte            // received, in order, not taken yet

	scaled, stamped bool // negotiated
	crossed         bool // simultaneous open
	lastStamp       uint32
	emitENO         bool // RFC 8547, section 4.6
	ownENO          []byte
	synENO, ackENO  *Segment // the peer's SYN or SYN-ACK; its first segment with ACK
	trace           []Traced
}

// Traced is a segment that was sent or received.
type Traced struct {
	At  time.Time
	Out bool // ours, as it left
	Segment
}

func newConn(h *Host, name flow, script Script) *Conn {
	script.fill(name.local.Addr().Is4())
	c := &Conn{
		host: h, name: name, script: script,
		changed: make(chan struct{}), early: make(map[uint32][]byte),
		iss: h.isn + uint32(time.Since(h.born)/isnTick), rto: script.RTO, peerMSS: 536, progress: time.Now(),
	}
	c.una, c.nxt, c.maxSent, c.bufSeq = c.iss, c.iss, c.iss, c.iss+1
	return c
}

// Local returns our address.
func (c *Conn) Local() netip.AddrPort { return c.name.local }

// Remote returns the peer's address.
func (c *Conn) Remote() netip.AddrPort { return c.name.remote }

// open sends the SYN.
func (c *Conn) open() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = stateSYNSent
	c.ownENO = firstENO(c.script.ENO)
	c.sendSYN()
}

// firstENO is the option that counts as ours for the transcript.
func firstENO(raw []byte) []byte {
	if found := ENOOptions(raw); len(found) > 0 {
		return found[0]
	}
	return nil
}

// sendSYN sends the SYN or SYN-ACK, first or again.
func (c *Conn) sendSYN() {
	s := &Segment{Seq: c.iss, Flags: SYN, Payload: c.script.SYNData}
	if c.state == stateSYNRcvd {
		s.Flags |= ACK
	}
	s.Options = binary.BigEndian.AppendUint16([]byte{optionMSS, 4}, c.script.MSS)
	if c.script.SACKPermitted {
		s.Options = append(s.Options, optionSACKPermitted, 2)
	}
	if c.script.Timestamps && (c.state == stateSYNSent || c.stamped) {
		s.Options = c.appendStamp(s.Options)
	}
	if c.script.WindowScale > 0 && (c.state == stateSYNSent || c.scaled) {
		s.Options = append(s.Options, optionWindowScale, 3, c.script.WindowScale)
	}
	s.Options = slices.Concat(s.Options, c.script.Options, c.script.ENO)
	c.nxt, c.maxSent = c.iss+1, c.iss+1
	c.transmit(s)
	c.arm()
}

func (c *Conn) appendStamp(b []byte) []byte {
	b = append(b, optionTimestamps, 10)
	b = binary.BigEndian.AppendUint32(b, uint32(time.Now().UnixMilli()))
	return binary.BigEndian.AppendUint32(b, c.lastStamp)
}

// transmit completes a segment and hands it to the script, and what that makes of it
// to the link.
func (c *Conn) transmit(s *Segment) {
	s.Src, s.Dst = c.name.local, c.name.remote
	s.Window = c.script.Window
	if s.Flags.Has(ACK) {
		s.Ack = c.rcvNxt
	}
	if !s.Flags.Has(SYN) {
		s.Options = nil
		if c.stamped {
			s.Options = c.appendStamp([]byte{optionNOP, optionNOP})
		}
		mark := c.emitENO
		if c.script.Mark != nil {
			mark = c.script.Mark(s, c.emitENO)
		}
		if mark {
			s.Options = append(append(s.Options, optionNOP, optionNOP), NonSYN...)
		}
	}
	c.emit(s)
}

func (c *Conn) emit(s *Segment) {
	out := []*Segment{s}
	if c.script.Out != nil {
		out = c.script.Out(s)
	}
	for _, p := range out {
		c.trace = append(c.trace, Traced{At: time.Now(), Out: true, Segment: *p})
		c.host.send(p)
	}
}

// segmentSize is what fits into a segment now.
func (c *Conn) segmentSize() int {
	n := min(c.peerMSS, int(c.script.MSS))
	if c.stamped {
		n -= 12
	}
	if c.emitENO || c.script.Mark != nil {
		n -= 4
	}
	if c.script.SegmentSize > 0 {
		n = min(n, c.script.SegmentSize)
	}
	return n
}

// push sends what window and flight allow.
func (c *Conn) push() {
	if c.state != stateEstablished || c.err != nil {
		return
	}
	size := c.segmentSize()
	for {
		offset := int(c.nxt - c.bufSeq)
		n := min(size, len(c.buf)-offset)
		inFlight := int(c.nxt - c.una)
		n = min(n, int(c.peerWnd)-inFlight)
		last := offset+max(n, 0) == len(c.buf)
		finNow := c.fin && last && offset <= len(c.buf)
		if inFlight >= maxFlight*size || n <= 0 && !finNow {
			break
		}
		n = max(n, 0)
		s := &Segment{Seq: c.nxt, Flags: ACK, Payload: slices.Clone(c.buf[offset : offset+n])}
		if last && n > 0 {
			s.Flags |= PSH
		}
		if finNow {
			s.Flags |= FIN
		}
		c.nxt = s.end()
		if int32(c.nxt-c.maxSent) > 0 {
			c.maxSent = c.nxt
		}
		c.transmit(s)
	}
	if c.unacked() || len(c.buf) > 0 {
		c.arm()
	}
}

func (c *Conn) unacked() bool { return c.una != c.nxt }

// ack sends a bare acknowledgement.
func (c *Conn) ack() { c.transmit(&Segment{Seq: c.nxt, Flags: ACK}) }

// arm starts the retransmission timer, unless it runs.
func (c *Conn) arm() {
	if c.timer != nil || c.err != nil {
		return
	}
	c.timer = time.AfterFunc(c.rto, c.onTimer)
}

func (c *Conn) onTimer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timer = nil
	if c.err != nil || !c.unacked() && len(c.buf) == 0 {
		return
	}
	if time.Since(c.progress) > c.script.Patience {
		c.failLocked(ErrTimeout)
		return
	}
	c.rto = min(2*c.rto, maxRTO)
	switch c.state {
	case stateSYNSent, stateSYNRcvd:
		c.sendSYN()
	case stateEstablished:
		c.nxt = max32(c.una, c.bufSeq)
		if c.peerWnd == 0 && len(c.buf) > 0 { // window probe
			c.transmit(&Segment{Seq: c.nxt, Flags: ACK, Payload: c.buf[:1:1]})
		}
		c.push()
		c.arm()
	case stateClosed:
	}
}

// max32 is the later of two sequence numbers.
func max32(a, b uint32) uint32 {
	if int32(a-b) > 0 {
		return a
	}
	return b
}

// signal wakes all who wait; c is locked.
func (c *Conn) signal() {
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
}

func (c *Conn) failLocked(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	c.signal()
}

// finished reports whether a new SYN may take the connection's place.
func (c *Conn) finished() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil || c.finRcvd && c.fin && !c.unacked() && len(c.buf) == 0
}

// await returns when ready reports true, which is called with c locked.
func (c *Conn) await(ctx context.Context, what string, ready func() (bool, error)) error {
	for {
		c.mu.Lock()
		ok, err := ready()
		changed := c.changed
		c.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s with %v: %w", what, c.name.remote, ctx.Err())
		}
	}
}

// Established waits for the end of the TCP handshake.
func (c *Conn) Established(ctx context.Context) error {
	return c.await(ctx, "handshake", func() (bool, error) {
		if c.state == stateEstablished { // whatever has come since
			return true, nil
		}
		return false, c.err
	})
}

// Write appends to the stream. It does not wait.
func (c *Conn) Write(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = append(c.buf, b...)
	c.push()
}

// WriteFIN appends to the stream and ends it: the FIN goes with the last byte.
func (c *Conn) WriteFIN(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = append(c.buf, b...)
	c.fin = true
	c.push()
}

// Read takes exactly n bytes from the stream. io.EOF means that a FIN came at once,
// io.ErrUnexpectedEOF that it came too early; nothing is taken then.
func (c *Conn) Read(ctx context.Context, n int) (b []byte, err error) {
	err = c.await(ctx, fmt.Sprintf("read %d bytes", n), func() (bool, error) {
		if len(c.in) >= n {
			b, c.in = c.in[:n:n], c.in[n:]
			return true, nil
		}
		switch {
		case c.err != nil:
			return false, c.err
		case c.finRcvd && len(c.in) == 0:
			return false, io.EOF
		case c.finRcvd:
			return false, io.ErrUnexpectedEOF
		}
		return false, nil
	})
	return b, err
}

// ReadAll takes the stream up to the FIN.
func (c *Conn) ReadAll(ctx context.Context) (b []byte, err error) {
	err = c.await(ctx, "read to the end", func() (bool, error) {
		if c.finRcvd {
			b, c.in = c.in, nil
			return true, nil
		}
		return false, c.err
	})
	return b, err
}

// Buffered returns a copy of what has been received and not taken.
func (c *Conn) Buffered() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.in)
}

// Drained waits until the peer's TCP has acknowledged everything written.
func (c *Conn) Drained(ctx context.Context) error {
	return c.await(ctx, "drain", func() (bool, error) {
		return len(c.buf) == 0 && !c.unacked() && c.state == stateEstablished, c.err
	})
}

// Ended waits for the peer's FIN (nil) or the connection's failure (ErrReset, ...).
func (c *Conn) Ended(ctx context.Context) error {
	return c.await(ctx, "wait for the end", func() (bool, error) { return c.finRcvd, c.err })
}

// Seen waits until a segment for which match reports true has been sent or received,
// and returns it.
func (c *Conn) Seen(ctx context.Context, what string, match func(t *Traced) bool) (found Traced, err error) {
	var checked int
	err = c.await(ctx, what, func() (bool, error) {
		for ; checked < len(c.trace); checked++ {
			if match(&c.trace[checked]) {
				found = c.trace[checked]
				return true, nil
			}
		}
		return false, c.err
	})
	return found, err
}

// Reset sends RST and ends the connection.
func (c *Conn) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.emit(&Segment{Src: c.name.local, Dst: c.name.remote, Seq: c.nxt, Ack: c.rcvNxt, Flags: RST | ACK})
		c.failLocked(ErrAborted)
	}
}

// Forget ends the connection without a word; from now on the host answers RST for it.
func (c *Conn) Forget() {
	c.fail(ErrAborted)
	c.host.forget(c)
}

// Inject sends a segment out of turn: a bare ACK as of now, changed by edit. It is not
// retransmitted and moves no state.
func (c *Conn) Inject(edit func(s *Segment)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &Segment{Src: c.name.local, Dst: c.name.remote, Seq: c.nxt, Ack: c.rcvNxt, Flags: ACK, Window: c.script.Window}
	edit(s)
	c.emit(s)
}

// KeepAlive sends TCP's own probe: an empty segment from before the window, which the
// peer answers with an ACK.
func (c *Conn) KeepAlive() { c.Inject(func(s *Segment) { s.Seq-- }) }

// ResendSYN sends our SYN again, with eno in place of the option that it had.
func (c *Conn) ResendSYN(eno []byte) {
	c.Inject(func(s *Segment) {
		s.Flags, s.Seq, s.Ack = SYN, c.iss, 0
		s.Options = append(binary.BigEndian.AppendUint16([]byte{optionMSS, 4}, c.script.MSS), eno...)
	})
}

// SetSegmentSize changes Script.SegmentSize for what has not been sent.
func (c *Conn) SetSegmentSize(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.script.SegmentSize = n
}

// SetWindow changes Script.Window and tells the peer.
func (c *Conn) SetWindow(n uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.script.Window = n
	if c.state == stateEstablished && c.err == nil {
		c.ack()
	}
}

// Trace returns all segments so far, in order.
func (c *Conn) Trace() []Traced {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.trace)
}

// options returns the ENO option that we sent in our SYN, the peer's SYN or SYN-ACK,
// and its first segment with ACK (the same, if we opened).
func (c *Conn) options() (own []byte, syn, ack *Segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ownENO, c.synENO, c.ackENO
}
