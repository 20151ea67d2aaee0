package tcp

import (
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// serviceDelay is how long the application has to read what has arrived, before the
// endpoint looks itself whether the peer is owed an answer.
const serviceDelay = 20 * time.Millisecond

// serviceRecords is how many records without data are opened at a time, by a Read, by
// Close or by the service, before others run: a peer may send them without end.
const serviceRecords = 64

// arm starts the service if an event may concern it. It may be called under the lock
// of TCP.
func (s *SecureEndpoint) arm(mask waiter.EventMask) {
	switch {
	case s.lingering.Load():
		s.startService(0)
	case mask&waiter.WritableEvents != 0 && (s.codec.Owed() > 0 || s.out.rekey.Load()):
		s.startService(0)
	case mask&waiter.ReadableEvents != 0:
		s.startService(serviceDelay)
	}
}

func (s *SecureEndpoint) startService(delay time.Duration) {
	if s.serviceArmed.Swap(true) {
		return
	}
	s.serviceSeen.Store(s.in.taken.Load())
	s.serviceMu.Lock()
	defer s.serviceMu.Unlock()
	switch {
	case s.serviceOver:
	case s.serviceTimer == nil:
		s.serviceTimer = s.inner.stack.Clock().AfterFunc(delay, s.serve)
	default:
		s.serviceTimer.Reset(delay)
	}
}

// serve does what must be done though the application does not read or write. It
// opens the next record if no plaintext waits, so that what the peer is owed becomes
// known, and sends it.
func (s *SecureEndpoint) serve() {
	s.serviceArmed.Store(false)
	if !s.x.is(modeEncrypted) {
		return
	}
	switch {
	case s.lingering.Load():
		s.serveLingering()
	case s.in.taken.Load() == s.serviceSeen.Load():
		s.openAhead()
	case s.inner.receiveBufferUsed() > 0:
		s.startService(serviceDelay) // somebody reads, but not all of it yet
	}
	s.payOwed()
	if s.x.failure.Load() != nil {
		s.endLiveness()
		s.wipe()
	}
}

// openAhead opens records up to the next one with data, if no data waits and nobody
// reads.
func (s *SecureEndpoint) openAhead() {
	in := &s.in
	if !in.mu.TryLock() {
		s.startService(serviceDelay) // somebody is reading, but may stop
		return
	}
	news, more := false, false
	if len(in.plain) == 0 && !s.dead && s.x.failure.Load() == nil {
		wasLast := in.last // and then only what must not follow is looked for
		var err tcpip.Error
		more, err = s.nextData()
		news = len(in.plain) > 0 || err != nil && !wouldBlock(err) && !wasLast
		s.releaseInbound()
	} else if !s.dead && s.x.failure.Load() == nil {
		s.openBehind()
		s.releaseInbound()
	}
	in.mu.Unlock()
	if news {
		s.user.Notify(waiter.ReadableEvents)
	}
	if more {
		s.startService(0)
	}
}

// aheadMax is how much plaintext is held, in bytes, so that records behind it can be
// opened. A peer whose question waits behind less than this does not see by our window
// that nobody reads.
const aheadMax = 8 << 10

// openBehind opens whole records behind plaintext that nobody reads, as long as there is
// little of it: one of them may want an answer. Called with in.mu held.
func (s *SecureEndpoint) openBehind() {
	in := &s.in
	headerLen := s.codec.HeaderLen()
	for range serviceRecords {
		if in.last || !s.arrived(headerLen) {
			return
		}
		for in.n < headerLen {
			n, err := s.take(in.header[in.n:headerLen])
			if err != nil {
				return // a Read finds it again
			}
			in.n += n
		}
		want, err := s.codec.RecordLen(in.header[:headerLen])
		if err != nil {
			_ = s.failRecord(err)
			return
		}
		in.want = max(want, headerLen)
		have := len(in.plain)
		if have+in.want > aheadMax || !s.arrived(in.want) {
			return
		}
		b := getRecordBuffer(have + in.want)
		copy(b.b, in.plain)
		record := b.b[have : have+in.want]
		copy(record, in.header[:headerLen])
		for in.n < in.want {
			n, err := s.take(record[in.n:])
			if err != nil {
				// TCP has failed meanwhile, and the rest of the record is gone with it.
				b.put()
				_ = s.streamEnd(err)
				return
			}
			in.n += n
		}
		data, last, err := s.codec.Open(record)
		if err != nil {
			b.put()
			_ = s.failRecord(err)
			return
		}
		in.opened.Add(1)
		in.n, in.want = 0, 0
		n := copy(record, data)
		in.buf.put()
		in.buf, in.plain, in.last = b, b.b[:have+n], last
	}
}

// arrived says whether n bytes of the current record are there. Called with in.mu held.
func (s *SecureEndpoint) arrived(n int) bool {
	return s.in.n+len(s.in.prefix)+s.inner.receiveBufferUsed() >= n
}
