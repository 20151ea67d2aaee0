package tcp

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
)

// idleTime is how long nothing must have been written for records to start small
// again. A record can be used only when all of it has arrived.
const idleTime = time.Second

// outbound is the sending half of the record layer. A whole record is queued when the
// send buffer has any room, so there never is half of one to be finished later; the
// buffer is overshot by one record at most.
type outbound struct {
	mu        sync.Mutex
	closed    bool        // our last record was sealed
	ended     atomic.Bool // the same, for Readiness
	rekey     atomic.Bool // a record without data is to start a rekeying
	sinceIdle int         // bytes of records sealed since the start or the last pause
	lastWrite tcpip.MonotonicTime
	writer    recordWriter
}

// writeEncrypted is Write of an encrypted connection.
func (s *SecureEndpoint) writeEncrypted(p tcpip.Payloader, _ tcpip.WriteOptions) (int64, tcpip.Error) {
	n, err := s.writeRecords(p)
	s.payOwed() // what became owed while we held the lock
	s.sent.Add(uint64(n))
	if n > 0 {
		return n, nil
	}
	return 0, err
}

func (s *SecureEndpoint) writeRecords(p tcpip.Payloader) (n int64, err tcpip.Error) {
	out := &s.out
	out.mu.Lock()
	defer out.mu.Unlock()
	if err := s.writable(); err != nil {
		return 0, err
	}
	space, err := s.inner.sendSpace()
	if err != nil {
		return 0, err
	}
	now := s.inner.stack.Clock().NowMonotonic()
	if now.Sub(out.lastWrite) > idleTime {
		out.sinceIdle = 0
	}
	out.lastWrite = now

	if r, ok := p.(*bytes.Reader); ok {
		// It lends its bytes to one Write, so they are sealed from where they are.
		w := &out.writer
		*w = recordWriter{s: s, space: space}
		n, _ := r.WriteTo(w) // its error is w.err, or none
		return n, w.err
	}
	scratch := getRecordBuffer(min(p.Len(), s.recordData(space, p.Len())))
	defer func() { scratch.put() }()
	for p.Len() > 0 {
		size := min(p.Len(), s.recordData(space, p.Len()))
		if len(scratch.b) < size {
			scratch.put()
			scratch = getRecordBuffer(size)
		}
		m, rerr := io.ReadFull(p, scratch.b[:size])
		if m == 0 && rerr != nil {
			return n, &tcpip.ErrBadBuffer{}
		}
		space, err = s.queueRecord(scratch.b[:m])
		if err != nil && !wouldBlock(err) {
			return n, err
		}
		n += int64(m)
		if err != nil || rerr != nil {
			return n, err
		}
	}
	return n, nil
}

// writable says whether more can be sealed. Called with out.mu held.
func (s *SecureEndpoint) writable() tcpip.Error {
	if f := s.x.failure.Load(); f != nil {
		return f.tcp
	}
	if s.out.closed || s.dead {
		return &tcpip.ErrClosedForSend{}
	}
	return nil
}

// recordWriter seals what is written to it as long as there is room.
type recordWriter struct {
	s     *SecureEndpoint
	space sendSpace
	err   tcpip.Error
}

// Write implements io.Writer for bytes.Reader.WriteTo.
func (w *recordWriter) Write(b []byte) (n int, err error) {
	for n < len(b) {
		size := min(len(b)-n, w.s.recordData(w.space, len(b)-n))
		w.space, w.err = w.s.queueRecord(b[n : n+size])
		if w.err != nil && !wouldBlock(w.err) {
			return n, io.ErrShortWrite
		}
		n += size
		if w.err != nil && n < len(b) {
			return n, io.ErrShortWrite
		}
	}
	return n, nil
}

// recordData returns how many bytes of data the next record should hold: about one
// packet at first, then as much as was sent since, which is how the congestion window
// grows, up to one super-segment. Records are whole packets, so that a run of them has
// no short ones. left is what there is to send.
func (s *SecureEndpoint) recordData(space sendSpace, left int) int {
	overhead := s.codec.Overhead()
	record := max(s.out.sinceIdle, space.payload)
	record = min(record, space.segment, max(space.buffer/2, space.payload))
	if record > space.payload {
		record -= record % space.payload
	}
	return max(min(record-overhead, s.codec.MaxData(), left), 1)
}

// queueRecord seals data and gives the record to TCP, whatever the send buffer holds.
// The space it returns is what is left then, with ErrWouldBlock if there is none.
// Called with out.mu held.
func (s *SecureEndpoint) queueRecord(data []byte) (sendSpace, tcpip.Error) {
	view, err := s.seal(data, false)
	if err != nil {
		return sendSpace{}, err
	}
	s.out.sinceIdle = min(s.out.sinceIdle+view.Size(), maxSinceIdle)
	return s.inner.queueBytes(view, false)
}

// seal makes a record, in memory that TCP can send from. Called with out.mu held.
func (s *SecureEndpoint) seal(data []byte, last bool) (*buffer.View, tcpip.Error) {
	view := buffer.NewViewSize(len(data) + s.codec.Overhead())
	record, err := s.codec.Seal(view.AsSlice()[:0], data, last)
	if err != nil {
		view.Release()
		err = fmt.Errorf("tcp: seal: %w", err)
		return nil, s.fail(abortError(err), err)
	}
	s.out.rekey.Store(false)
	if len(record) != view.Size() || &record[0] != &view.AsSlice()[0] {
		view.Release()
		view = buffer.NewViewWithData(record)
	}
	return view, nil
}

// maxSinceIdle is past the largest record, so that the count cannot overflow.
const maxSinceIdle = 1 << 20

// tcpError is a tcpip.Error as an error.
type tcpError struct{ err tcpip.Error }

func (e *tcpError) Error() string { return "tcp: " + e.err.String() }

func wouldBlock(err tcpip.Error) bool {
	_, ok := err.(*tcpip.ErrWouldBlock)
	return ok
}

// payOwed sends the empty records that the peer is owed, as far as there is room. If
// somebody else is writing, they will.
func (s *SecureEndpoint) payOwed() {
	for (s.codec.Owed() > 0 || s.out.rekey.Load()) && s.out.mu.TryLock() {
		again := s.payOwedLocked()
		s.out.mu.Unlock()
		if !again {
			return
		}
	}
}

// payOwedLocked says whether nothing keeps it from sending more. Called with out.mu held.
func (s *SecureEndpoint) payOwedLocked() bool {
	for s.owes() {
		if s.writable() != nil {
			return false
		}
		if _, err := s.inner.sendSpace(); err != nil {
			return false // a writable event comes when there is room, and we again
		}
		if _, err := s.queueRecord(nil); err != nil && !wouldBlock(err) {
			return false
		}
	}
	return true
}
