package wirepeer

import (
	"slices"
	"time"
)

// receive handles one segment of the peer's.
func (c *Conn) receive(s *Segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.script.In != nil && !c.script.In(s) {
		return
	}
	c.trace = append(c.trace, Traced{At: time.Now(), Segment: *s})
	defer c.signal()
	if c.err != nil {
		// What we have left for good is not there: RST, as for any stray segment, but
		// only where we said so ourselves.
		if c.err == ErrAborted && !s.Flags.Has(RST) { //nolint:errorlint // a sentinel of ours, never wrapped
			c.emit(refusal(s))
		}
		return
	}
	switch c.state {
	case stateClosed:
		c.receiveFirst(s)
	case stateSYNSent:
		c.receiveSYNACK(s)
	case stateSYNRcvd, stateEstablished:
		c.receiveOther(s)
	}
}

// receiveFirst handles the SYN of a passive open.
func (c *Conn) receiveFirst(s *Segment) {
	c.synENO = s
	c.takeSYN(s)
	c.state = stateSYNRcvd
	if c.script.Answer != nil {
		c.script.ENO = c.script.Answer(s)
	}
	c.ownENO = firstENO(c.script.ENO)
	c.emitENO = c.ownENO != nil && s.ENO() != nil
	if c.script.Simultaneous {
		c.state = stateSYNSent
		c.sendSYN()
		c.state, c.crossed = stateSYNRcvd, true
	}
	c.sendSYN()
}

// takeSYN records what the peer's SYN tells of its TCP.
func (c *Conn) takeSYN(s *Segment) {
	c.irs, c.rcvNxt = s.Seq, s.Seq+1
	if mss, ok := s.mss(); ok {
		c.peerMSS = int(mss)
	}
	shift, scaled := s.windowScale()
	if c.scaled = scaled && c.script.WindowScale > 0; c.scaled {
		c.peerShift = shift
	}
	stamp, stamped := s.timestamp()
	c.stamped, c.lastStamp = stamped && c.script.Timestamps, stamp
	c.peerWnd = uint32(s.Window) // never scaled in a SYN
}

// receiveSYNACK handles what answers our SYN.
func (c *Conn) receiveSYNACK(s *Segment) {
	switch {
	case s.Flags&(SYN|ACK|RST) == SYN: // they cross
		c.synENO = s
		c.takeSYN(s)
		c.emitENO = c.ownENO != nil && s.ENO() != nil
		c.state, c.crossed = stateSYNRcvd, true
		c.sendSYN()
	case !s.Flags.Has(ACK) || s.Ack != c.iss+1:
	case s.Flags.Has(RST):
		c.failLocked(ErrRefused)
	case s.Flags.Has(SYN):
		c.synENO, c.ackENO = s, s
		c.takeSYN(s)
		c.una, c.progress, c.rto = s.Ack, time.Now(), c.script.RTO
		c.emitENO = c.ownENO != nil && s.ENO() != nil
		c.establish()
		c.ack()
	}
}

func (c *Conn) establish() {
	c.state = stateEstablished
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if c.onEstablished != nil {
		c.onEstablished()
	}
	c.push()
}

// receiveOther handles everything after the peer's SYN.
func (c *Conn) receiveOther(s *Segment) {
	switch {
	case s.Flags.Has(RST) && c.finRcvd && c.fin && len(c.buf) == 0 && !c.unacked():
		return // both directions have ended: a doubled ACK of ours has met nobody
	case s.Flags.Has(RST):
		if int32(s.Seq-c.rcvNxt) >= 0 && s.Seq-c.rcvNxt <= defaultWindow {
			c.failLocked(ErrReset)
		}
		return
	case c.crossed && c.state == stateSYNRcvd && s.Flags.Has(SYN|ACK) && s.Ack == c.iss+1:
		c.ackENO = s
		c.emitENO = c.emitENO && s.HasENO()
		c.una, c.progress, c.rto = s.Ack, time.Now(), c.script.RTO
		c.establish()
		c.ack()
		return
	case s.Flags.Has(SYN) && c.state == stateSYNRcvd:
		c.sendSYN()
		return
	case s.Flags.Has(SYN): // our ACK was lost
		c.ack()
		return
	case !s.Flags.Has(ACK):
		return
	}
	if c.state == stateSYNRcvd {
		if s.Ack != c.iss+1 {
			return
		}
		c.ackENO = s
	}
	if stamp, ok := s.timestamp(); ok && c.stamped {
		c.lastStamp = stamp
	}
	// RFC 8547, section 4.6: ENO ends with the first non-SYN segment received. A bare
	// ACK of nothing but our SYN may be one that a passive side sent before it had heard
	// us, which is no reason to stop.
	if len(s.Payload) > 0 || s.Flags.Has(FIN) || int32(s.Ack-(c.iss+1)) > 0 || c.state == stateSYNRcvd && !c.crossed {
		c.emitENO = false
	}
	if c.state == stateSYNRcvd {
		c.una, c.progress, c.rto = s.Ack, time.Now(), c.script.RTO
		c.peerWnd = uint32(s.Window) << c.peerShift
		c.establish()
	}
	c.receiveAck(s)
	c.receiveData(s)
}

func (c *Conn) receiveAck(s *Segment) {
	window := uint32(s.Window) << c.peerShift
	advanced := int32(s.Ack-c.una) > 0 && int32(s.Ack-c.maxSent) <= 0
	switch {
	case advanced:
		c.una = s.Ack
		c.nxt = max32(c.nxt, c.una) // after a go-back
		if n := int(c.una - c.bufSeq); n > 0 {
			n = min(n, len(c.buf)) // the FIN has a number of its own
			c.buf, c.bufSeq = c.buf[n:], c.bufSeq+uint32(n)
		}
		c.dupAcks, c.rto, c.progress = 0, c.script.RTO, time.Now()
		if c.timer != nil {
			c.timer.Stop()
			c.timer = nil
		}
	case s.Ack == c.una && c.unacked() && len(s.Payload) == 0 && window == c.peerWnd && !s.Flags.Has(FIN):
		if c.dupAcks++; c.dupAcks == 3 {
			c.resendFirst()
		}
	case window != c.peerWnd:
		c.progress = time.Now() // alive, and reading or not
	}
	if window == 0 {
		c.progress = time.Now()
	}
	c.peerWnd = window
	c.push()
}

// resendFirst is the fast retransmission.
func (c *Conn) resendFirst() {
	offset := int(c.una - c.bufSeq)
	n := min(c.segmentSize(), len(c.buf)-offset)
	if n <= 0 {
		return // the FIN: the timer will do
	}
	c.transmit(&Segment{Seq: c.una, Flags: ACK, Payload: slices.Clone(c.buf[offset : offset+n])})
}

func (c *Conn) receiveData(s *Segment) {
	if len(s.Payload) == 0 && !s.Flags.Has(FIN) {
		if s.Seq != c.rcvNxt && int32(s.Seq-c.rcvNxt) < 0 { // keep-alive
			c.ack()
		}
		return
	}
	if s.Flags.Has(FIN) {
		c.finSeen, c.finSeq = true, s.Seq+uint32(len(s.Payload))
	}
	if len(s.Payload) > 0 {
		c.early[s.Seq] = s.Payload
	}
	for again := true; again; {
		again = false
		for seq, payload := range c.early {
			skip := int32(c.rcvNxt - seq)
			if skip < 0 {
				continue
			}
			delete(c.early, seq)
			if int(skip) < len(payload) {
				c.in = append(c.in, payload[skip:]...)
				c.rcvNxt += uint32(len(payload) - int(skip))
				again = true
			}
		}
	}
	if c.finSeen && !c.finRcvd && c.rcvNxt == c.finSeq {
		c.finRcvd = true
		c.rcvNxt++
	}
	c.ack()
}
