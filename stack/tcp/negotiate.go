package tcp

import (
	"fmt"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/seqnum"
	"gvisor.dev/gvisor/pkg/waiter"
)

// A mode is what is known about the protection of a connection. It changes under
// the endpoint's lock, to undecided's successors before TCP is established: who
// holds the lock and finds a connected endpoint finds it decided.
type mode uint32

const (
	modeUndecided mode = iota
	modePlain          // upstream's TCP, for ever
	modeKeying         // encrypted, keys being exchanged
	modeEncrypted      // encrypted, records flow
	modeFailed         // refused, or closed before it was decided
)

// endpointExtension is what TCP knows of a connection's negotiation. Its fields are
// guarded by the endpoint's lock but for the atomic ones.
type endpointExtension struct {
	mode      atomic.Uint32
	encrypted atomic.Bool // decided so, whatever became of it
	failure   atomic.Pointer[failure]

	neg     Negotiator // nil: plain
	ask     bool       // Extension.Active is still to be asked
	open    bool       // neg waits for ReceiveACK or Abandon
	session Session    // once decided, if encrypted
	owner   *SecureEndpoint

	synOption  []byte // as in the first SYN or SYN-ACK; the same bytes each time
	synSent    bool
	withdrawn  bool
	unanswered int
	lastSYN    tcpip.MonotonicTime

	// emitting says that non-SYN segments carry nonSYN.
	emitting bool
	nonSYN   []byte
	iss      seqnum.Value

	// finSent says that FIN left with data, before the sender came to it.
	finSent bool

	misleading misleading
	watched    atomic.Bool  // misleading.start may come
	heldBytes  atomic.Int64 // how many that may be of it were withheld last

	window peerWindow

	mtu         uint32         // cap on the path MTU, with IP header; 0 for none
	timeWait    *time.Duration // instead of the stack's
	reopeningBy *segment       // a SYN that may end our TIME-WAIT
}

func (x *endpointExtension) is(m mode) bool { return mode(x.mode.Load()) == m }

// fail keeps the first failure and returns it.
func (x *endpointExtension) fail(tcp tcpip.Error, cause error) *failure {
	x.failure.CompareAndSwap(nil, &failure{tcp: tcp, cause: cause})
	return x.failure.Load()
}

// decide hears the first acceptable segment with ACK.
//
// +checklocks:h.ep.mu
func (x *endpointExtension) decide(h *handshake, s *segment) tcpip.Error {
	x.open = false
	x.iss = h.iss
	session, err := x.neg.ReceiveACK(s.rawOptions(), s.flags.Contains(header.TCPFlagSyn))
	switch {
	case err != nil:
		x.emitting = false
		x.mode.Store(uint32(modeFailed))
		return x.fail(abortError(err), err).tcp
	case session == nil:
		x.emitting = false
		x.misleading.start = x.neg.Misled()
		x.watched.Store(len(x.misleading.start) > 0)
		x.mode.Store(uint32(modePlain))
	default:
		x.session = session
		// The passive opener has the peer's ACK and so stops at once (RFC 8547,
		// section 4.6); the active one, and either of a simultaneous open, goes on
		// until it has seen more than the handshake.
		x.emitting = h.active
		if x.emitting && x.nonSYN == nil {
			x.nonSYN = x.neg.NonSYNOption()
		}
		x.window.watch = true
		x.encrypted.Store(true)
		x.mode.Store(uint32(modeKeying))
	}
	return nil
}

// end is called when TCP drops the connection, perhaps more than once.
func (x *endpointExtension) end() {
	if x.open {
		x.open = false
		x.neg.Abandon()
	}
	if x.session != nil && x.owner == nil {
		// Established, but nobody accepted it.
		x.session.Close()
		x.session = nil
	}
}

// handleSegment wraps upstream's: it hears the other SYN of a simultaneous open,
// decides on a SYN-ACK before it is acknowledged, and resets a refused connection.
//
// +checklocks:h.ep.mu
func (h *handshake) handleSegment(s *segment) tcpip.Error {
	e := h.ep
	x := e.ext
	if x == nil || !x.open {
		return h.handleSegmentUpstream(s)
	}
	if h.state == handshakeSynSent && s.flags.Contains(header.TCPFlagSyn) && !s.flags.Contains(header.TCPFlagRst) {
		switch {
		case !s.flags.Contains(header.TCPFlagAck):
			x.neg.ReceiveSYN(s.rawOptions())
		case s.ackNumber == h.iss+1: // what upstream's checkAck wants
			if err := x.decide(h, s); err != nil {
				e.sendEmptyRaw(header.TCPFlagRst|header.TCPFlagAck, h.iss+1, s.sequenceNumber+1, 0)
				return err
			}
		}
	}
	err := h.handleSegmentUpstream(s)
	if f := x.failure.Load(); err == nil && f != nil {
		// Refused on the ACK that established it.
		e.resetConnectionLocked(f.tcp)
		return f.tcp
	}
	return err
}

// transitionToStateEstablishedLocked wraps upstream's. It is the one place where a
// passive opener decides, on a segment that TCP accepted. The decision comes first,
// since upstream's body computes the payload size.
//
// +checklocks:h.ep.mu
func (h *handshake) transitionToStateEstablishedLocked(s *segment) {
	e := h.ep
	x := e.ext
	if x != nil && x.is(modeUndecided) {
		if x.open {
			// An error is acted upon in handleSegment.
			_ = x.decide(h, s)
		} else {
			x.mode.Store(uint32(modePlain))
		}
	}
	if cap := e.pathMSS(); cap != 0 {
		h.mss = min(h.mss, cap)
	}
	h.transitionToStateEstablishedLockedUpstream(s)
	if x != nil && x.owner != nil {
		x.owner.established()
	}
}

// handleSegmentLocked wraps upstream's: at the first segment from the peer that is
// more than its part of the handshake, our segments stop carrying the option.
//
// +checklocks:e.mu
func (e *Endpoint) handleSegmentLocked(s *segment) (cont bool, err tcpip.Error) {
	if x := e.ext; x != nil {
		if x.emitting && e.beyondHandshake(s) {
			x.emitting = false
		}
		if x.finSent && s.ackNumber == e.snd.SndNxt+1 {
			e.snd.catchUpWithFIN()
		}
	}
	cont, err = e.handleSegmentLockedUpstream(s)
	if x := e.ext; x != nil && x.window.watch {
		x.window.note(e.snd.SndWnd, x.owner)
	}
	return cont, err
}

// beyondHandshake says whether s is acceptable and carries data or FIN or
// acknowledges more than our SYN. A duplicate of the handshake's ACK does not count:
// an opener whose own ACK was lost gets one, and must not stop then.
//
// +checklocks:e.mu
func (e *Endpoint) beyondHandshake(s *segment) bool {
	if !s.flags.Contains(header.TCPFlagAck) || s.flags.Intersects(header.TCPFlagSyn|header.TCPFlagRst) {
		return false
	}
	if !e.rcv.acceptable(s.sequenceNumber, seqnum.Size(s.payloadSize())) {
		return false
	}
	if s.payloadSize() > 0 || s.flags.Contains(header.TCPFlagFin) {
		return true
	}
	return s.ackNumber != e.ext.iss+1 && (s.ackNumber-1).InRange(e.snd.SndUna, e.snd.SndNxt)
}

// createConnectingEndpoint wraps upstream's: the extension hears of the peer's SYN.
// The bare ACK that returns a SYN cookie comes here too, and has no negotiation.
//
// +checklocksacquire:n.mu
func (l *listenContext) createConnectingEndpoint(s *segment, rcvdSynOpts header.TCPSynOptions, queue *waiter.Queue) (n *Endpoint, _ tcpip.Error) {
	p := l.protocol.ext
	if p != nil && p.Extension != nil && !s.flags.Contains(header.TCPFlagSyn) {
		if err := p.Extension.Cookie(connOf(s.id)); err != nil {
			e := l.listenEP
			_ = replyWithReset(e.stack, s, e.sendTOS, e.ipv4TTL, e.ipv6HopLimit) // as if nobody listened, whether it leaves or not
			return nil, abortError(err)
		}
	}
	n, err := l.createConnectingEndpointUpstream(s, rcvdSynOpts, queue)
	if err != nil || p == nil || !s.flags.Contains(header.TCPFlagSyn) || s.flags.Contains(header.TCPFlagAck) {
		return n, err
	}
	neg, ok := p.answer(s)
	if !ok {
		neg = p.passive(s)
	}
	if neg != nil {
		n.ext = &endpointExtension{neg: neg, open: true}
		neg.ReceiveSYN(s.rawOptions())
	}
	return n, nil
}

// handleListenSegment wraps upstream's, whose caller logs each error: that a cookie's
// connection was refused is no news, and its peer may repeat it.
//
// +checklocks:e.mu
func (e *Endpoint) handleListenSegment(ctx *listenContext, s *segment) tcpip.Error {
	err := e.handleListenSegmentUpstream(ctx, s)
	if _, ours := err.(*Error); ours {
		return nil
	}
	return err
}

// cleanupLocked wraps upstream's, through which every endpoint goes that ends.
//
// +checklocks:e.mu
func (e *Endpoint) cleanupLocked() {
	if e.ext != nil {
		e.ext.end()
	}
	e.cleanupLockedUpstream()
}

func (m mode) String() string {
	switch m {
	case modeUndecided:
		return "undecided"
	case modePlain:
		return "plain"
	case modeKeying:
		return "keying"
	case modeEncrypted:
		return "encrypted"
	case modeFailed:
		return "failed"
	default:
		return fmt.Sprintf("mode(%d)", uint32(m))
	}
}
