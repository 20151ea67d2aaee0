package tcp

import (
	"bytes"
	"io"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/seqnum"
	"gvisor.dev/gvisor/pkg/waiter"
)

// holdTime is how long the first bytes of a plain stream are withheld while they may
// still turn out to be those of a peer that encrypts. A program of the peer's may
// begin with the same byte, and wait for an answer.
const holdTime = time.Second

// A misleading stream is one that may begin with what Negotiator.Misled returned.
// Guarded by the endpoint's lock but for the atomic fields of SecureEndpoint.
type misleading struct {
	start   []byte
	waited  bool // holdTime is over
	started bool // its timer runs
}

type verdict int

const (
	held   verdict = iota // not enough bytes
	misled                // the peer encrypts
	honest
)

// readWatched is Read of a plain connection whose first bytes are watched.
func (s *SecureEndpoint) readWatched(dst io.Writer, opts tcpip.ReadOptions) (tcpip.ReadResult, tcpip.Error) {
	switch s.judge() {
	case held:
		return tcpip.ReadResult{}, &tcpip.ErrWouldBlock{}
	case misled:
		s.x.mode.Store(uint32(modeFailed))
		return tcpip.ReadResult{}, s.fail(abortError(ErrMisled), ErrMisled)
	default:
		s.x.watched.Store(false)
		return s.Read(dst, opts)
	}
}

// judge looks at what has arrived of the stream.
func (s *SecureEndpoint) judge() verdict {
	e, m := s.inner, &s.x.misleading
	e.LockUser()
	defer e.UnlockUser()
	var have [16]byte
	start := m.start[:min(len(m.start), len(have))]
	n := 0
	for seg := e.rcvQueue.Front(); seg != nil && n < len(start); seg = seg.Next() {
		w := tcpip.SliceWriter(have[n:len(start)])
		got, err := seg.ReadTo(&w, true)
		n += got
		if err != nil {
			break // have is full
		}
	}
	switch {
	case !bytes.Equal(have[:n], start[:n]):
		return honest
	case n == len(start):
		return misled
	case !e.EndpointState().connected() || e.rcv != nil && e.rcv.closed || m.waited:
		return honest
	}
	s.x.heldBytes.Store(int64(n))
	if n > 0 && !m.started {
		m.started = true
		s.serviceMu.Lock()
		if !s.serviceOver {
			s.holdTimer = e.stack.Clock().AfterFunc(holdTime, s.holdOver)
		}
		s.serviceMu.Unlock()
	}
	return held
}

func (s *SecureEndpoint) holdOver() {
	s.inner.LockUser()
	s.x.misleading.waited = true
	s.x.heldBytes.Store(-1)
	s.inner.UnlockUser()
	s.user.Notify(waiter.ReadableEvents)
}

// readableWatched says whether a Read of a watched stream may return more than the last
// one, which found that nothing could be said yet. It takes no lock of TCP's endpoint.
func (s *SecureEndpoint) readableWatched() bool {
	e := s.inner
	e.rcvQueueMu.Lock()
	defer e.rcvQueueMu.Unlock()
	return e.RcvClosed || int64(e.RcvBufUsed) != s.x.heldBytes.Load()
}

// peerWindow is what the peer's receive windows have told about whether it reads.
// Guarded by the endpoint's lock.
type peerWindow struct {
	watch   bool
	largest seqnum.Size
	// closedAt is one more than the number of records that we had opened when the
	// window was seen closed last; 0 for never.
	closedAt uint64
}

// note is told of the window after each segment.
func (w *peerWindow) note(size seqnum.Size, owner *SecureEndpoint) {
	w.largest = max(w.largest, size)
	if size == 0 {
		w.closedAt = 1
		if owner != nil {
			w.closedAt += owner.in.opened.Load()
		}
	}
}
