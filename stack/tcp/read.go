package tcp

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// maxHeaderLen bounds Codec.HeaderLen.
const maxHeaderLen = 8

// enoughRead is how much one Read returns before it stops looking for more records.
const enoughRead = 32 << 10

// inbound is the receiving half of the record layer. It never reads ahead of one
// record, so the flow control of TCP stays that of TCP; and it takes the bytes of a
// record out of TCP as they come, since a record may be larger than the window.
type inbound struct {
	mu     sync.Mutex
	prefix []byte // bytes that the key exchange gave back, before those that TCP holds
	header [maxHeaderLen]byte
	buf    *recordBuffer // nil while there is nothing
	n      int           // bytes of the current record that we have
	want   int           // its whole length, 0 while unknown
	plain  []byte        // opened and not yet read; aliases buf
	last   bool          // the peer's last record was opened
	taken  atomic.Uint64 // bytes taken out of TCP, ever
	opened atomic.Uint64 // records, ever

	// pending says, for Readiness, that a Read would return data or the end.
	pending atomic.Bool
	writer  tcpip.SliceWriter
}

// readEncrypted is Read of an encrypted connection.
func (s *SecureEndpoint) readEncrypted(dst io.Writer, opts tcpip.ReadOptions) (tcpip.ReadResult, tcpip.Error) {
	in := &s.in
	in.mu.Lock()
	defer in.mu.Unlock()
	done := 0
	var err tcpip.Error
	for done < enoughRead {
		var more bool
		if more, err = s.nextData(); err != nil {
			break
		}
		if more {
			err = &tcpip.ErrWouldBlock{} // the service goes on, and tells when there is data
			s.startService(0)
			break
		}
		n, werr := dst.Write(in.plain)
		done += n
		if opts.Peek {
			if werr != nil && n == 0 {
				err = &tcpip.ErrBadBuffer{}
			}
			break
		}
		in.plain = in.plain[n:]
		if werr != nil {
			if done == 0 {
				err = &tcpip.ErrBadBuffer{}
			}
			break
		}
	}
	s.releaseInbound()
	s.payOwed()
	if err == nil && len(in.plain) == 0 && s.inner.receiveBufferUsed() > 0 {
		s.startService(serviceDelay) // this may have been the last Read
	}
	if done == 0 && err != nil {
		if wouldBlock(err) && s.readShut() {
			err = &tcpip.ErrClosedForReceive{}
		}
		return tcpip.ReadResult{}, err
	}
	if !opts.Peek {
		s.received.Add(uint64(done))
	}
	return tcpip.ReadResult{Count: done, Total: done}, nil
}

// nextData opens records up to the next one with data, if no plaintext is left. Of a
// flood of records without data it opens serviceRecords and says that there may be more.
// Called with in.mu held.
func (s *SecureEndpoint) nextData() (more bool, err tcpip.Error) {
	for range serviceRecords {
		if len(s.in.plain) > 0 {
			return false, nil
		}
		if err := s.nextRecord(); err != nil {
			return false, err
		}
	}
	return len(s.in.plain) == 0, nil
}

// nextRecord takes and opens the next record, if all of it is there; there must be no
// plaintext left. It returns ErrWouldBlock if it is not, ErrClosedForReceive after the
// last one, and the failure of a connection that has failed. Called with in.mu held.
func (s *SecureEndpoint) nextRecord() tcpip.Error {
	in := &s.in
	if f := s.x.failure.Load(); f != nil {
		return f.tcp
	}
	if s.dead {
		return &tcpip.ErrClosedForReceive{}
	}
	if in.last {
		return s.afterLast()
	}
	headerLen := s.codec.HeaderLen()
	for in.n < headerLen {
		n, err := s.take(in.header[in.n:headerLen])
		if err != nil {
			return s.streamEnd(err)
		}
		in.n += n
	}
	if in.want == 0 {
		want, err := s.codec.RecordLen(in.header[:headerLen])
		if err != nil {
			return s.failRecord(err)
		}
		in.want = max(want, headerLen)
	}
	for {
		b := s.roomForRecord(headerLen)
		if in.n == in.want {
			break
		}
		n, err := s.take(b[in.n:min(in.want, len(b))])
		if err != nil {
			return s.streamEnd(err)
		}
		in.n += n
	}
	data, last, err := s.codec.Open(in.buf.b[:in.want])
	if err != nil {
		return s.failRecord(err)
	}
	in.opened.Add(1)
	in.n, in.want = 0, 0
	in.plain, in.last = data, last
	return nil
}

// afterLast checks that nothing follows the last record.
func (s *SecureEndpoint) afterLast() tcpip.Error {
	n, err := s.take(s.in.header[:1])
	if n > 0 {
		return s.fail(abortError(ErrAfterEnd), ErrAfterEnd)
	}
	switch err.(type) {
	case *tcpip.ErrWouldBlock, *tcpip.ErrClosedForReceive, nil:
	default:
		// A reset after the last record takes nothing from what was read.
	}
	return &tcpip.ErrClosedForReceive{}
}

// streamEnd makes of TCP's error what the record layer's is.
func (s *SecureEndpoint) streamEnd(err tcpip.Error) tcpip.Error {
	switch err.(type) {
	case *tcpip.ErrWouldBlock:
		return err
	case *tcpip.ErrClosedForReceive:
		if !s.inner.finReceived() {
			// TCP has failed, and somebody else was told why: it tells it once.
			err := &tcpip.ErrConnectionReset{}
			return s.x.fail(err, &tcpError{err}).tcp
		}
		cause := ErrTruncated
		if s.in.n == 0 {
			if e := s.codec.EndOfStream(); e != nil {
				cause = fmt.Errorf("%w: %w", ErrTruncated, e)
			} else {
				s.in.last = true
				return err
			}
		}
		return s.fail(abortError(cause), cause)
	default:
		return s.x.fail(err, &tcpError{err}).tcp
	}
}

// finReceived says whether the peer's FIN was received, and all before it.
func (e *Endpoint) finReceived() bool {
	e.LockUser()
	defer e.UnlockUser()
	return e.rcv != nil && e.rcv.closed
}

func (s *SecureEndpoint) failRecord(err error) tcpip.Error {
	err = fmt.Errorf("tcp: record: %w", err)
	return s.fail(abortError(err), err)
}

// take moves bytes out of TCP into p, at least one if there is no error.
func (s *SecureEndpoint) take(p []byte) (int, tcpip.Error) {
	in := &s.in
	if len(p) == 0 {
		return 0, nil
	}
	if n := copy(p, in.prefix); n > 0 {
		in.prefix = in.prefix[n:]
		if len(in.prefix) == 0 {
			in.prefix = nil
		}
		in.taken.Add(uint64(n))
		return n, nil
	}
	in.writer = p
	res, err := s.inner.Read(&in.writer, tcpip.ReadOptions{})
	in.writer = nil
	if err != nil {
		return 0, err
	}
	if res.Count == 0 {
		return 0, &tcpip.ErrWouldBlock{}
	}
	in.taken.Add(uint64(res.Count))
	return res.Count, nil
}

// roomForRecord returns the buffer of the current record with room for what TCP holds
// of it. A buffer of the size that the header promises comes only with the bytes.
func (s *SecureEndpoint) roomForRecord(headerLen int) []byte {
	in := &s.in
	need := min(in.want, in.n+max(s.inner.receiveBufferUsed()+len(in.prefix), 1))
	if old := in.buf; old == nil || len(old.b) < need {
		in.buf = getRecordBuffer(need)
		if old != nil {
			copy(in.buf.b, old.b[:min(in.n, len(old.b))])
			old.put()
		}
	}
	copy(in.buf.b, in.header[:headerLen])
	return in.buf.b
}

// releaseInbound gives the buffer back if it holds nothing. Called with in.mu held.
func (s *SecureEndpoint) releaseInbound() {
	in := &s.in
	in.pending.Store(len(in.plain) > 0 || in.last)
	if in.buf != nil && len(in.plain) == 0 && in.n == 0 {
		in.buf.put()
		in.buf, in.plain = nil, nil
	}
}

// buffered returns how many bytes a Read would return at once.
func (s *SecureEndpoint) buffered() int {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	return len(s.in.plain)
}

func (s *SecureEndpoint) readShut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shut&tcpip.ShutdownRead != 0
}
