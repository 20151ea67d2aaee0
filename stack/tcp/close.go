package tcp

import (
	"errors"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// errAborted is the cause of an abort that the application asked for.
var errAborted = errors.New("tcp: aborted")

// shutdownUndecided is Shutdown of an endpoint that is not decided; false if it is by
// now. The lock is held throughout: a FIN for a connection that turned out to be
// encrypted meanwhile would be a truncation.
func (s *SecureEndpoint) shutdownUndecided(flags tcpip.ShutdownFlags) (tcpip.Error, bool) {
	e := s.inner
	e.LockUser()
	defer e.UnlockUser()
	if !s.x.is(modeUndecided) {
		return nil, false
	}
	if e.EndpointState().connecting() {
		// As Endpoint.Shutdown does it.
		e.handshakeFailed(&tcpip.ErrConnectionReset{})
		e.waiterQueue.Notify(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
		return nil, true
	}
	return e.shutdownLocked(flags), true
}

// shutdownKeying remembers a Shutdown until keys are there; false if they are, or if
// the exchange has failed.
func (s *SecureEndpoint) shutdownKeying(flags tcpip.ShutdownFlags) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.x.is(modeKeying) {
		return false
	}
	s.shut |= flags
	return true
}

// shutdownEncrypted seals the last record and sends FIN behind it. The record may
// overshoot the send buffer.
func (s *SecureEndpoint) shutdownEncrypted(flags tcpip.ShutdownFlags) tcpip.Error {
	s.mu.Lock()
	s.shut |= flags
	shut := s.shut
	s.mu.Unlock()
	if shut == tcpip.ShutdownRead|tcpip.ShutdownWrite {
		// As upstream: what was not read is lost, and the peer must know.
		if s.unread() {
			s.reset(&tcpip.ErrConnectionAborted{})
			return nil
		}
	}
	if flags&tcpip.ShutdownRead != 0 {
		// The inner endpoint stays open for reading. Closed, it would answer the
		// peer's last record with a reset, and nobody would see rekeys.
		events := waiter.ReadableEvents
		if shut&tcpip.ShutdownWrite == 0 {
			events |= waiter.EventRdHUp
		}
		s.user.Notify(events)
	}
	var err tcpip.Error
	if flags&tcpip.ShutdownWrite != 0 {
		err = s.finish()
	}
	if shut == tcpip.ShutdownRead|tcpip.ShutdownWrite {
		s.linger()
	}
	return err
}

// finish seals our last record and closes TCP for writing, once.
func (s *SecureEndpoint) finish() tcpip.Error {
	out := &s.out
	out.mu.Lock()
	defer out.mu.Unlock()
	if out.closed || s.dead {
		return nil
	}
	if f := s.x.failure.Load(); f != nil {
		return &tcpip.ErrNotConnected{}
	}
	out.closed = true
	out.ended.Store(true)
	view, err := s.seal(nil, true)
	if err != nil {
		return err
	}
	return s.inner.queueLast(view)
}

// unread says whether the peer sent data that was not read. Records without data are
// consumed meanwhile.
func (s *SecureEndpoint) unread() bool {
	in := &s.in
	in.mu.Lock()
	defer in.mu.Unlock()
	if more, _ := s.nextData(); more {
		return false // none so far; lingering goes on
	}
	return len(in.plain) > 0 || in.n > 0
}

// Close implements tcpip.Endpoint. Of an encrypted connection the peer's end of
// stream is still waited for in the background, as TCP does in FIN-WAIT-2.
func (s *SecureEndpoint) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	linger := s.inner.SocketOptions().GetLinger()
	hard := linger.Enabled && linger.Timeout == 0
	if s.x.is(modeKeying) && !hard {
		// Closed by the key exchange when it is done.
		s.shut = tcpip.ShutdownRead | tcpip.ShutdownWrite
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()

	e := s.inner
	e.LockUser()
	// An endpoint that is closed undecided does not become encrypted any more.
	s.x.mode.CompareAndSwap(uint32(modeUndecided), uint32(modeFailed))
	e.UnlockUser()
	switch {
	case s.x.is(modeEncrypted) && !hard:
		s.closeEncrypted()
	default:
		s.cancel(errAborted)
		e.Close()
		if !s.x.is(modeKeying) {
			s.bury()
		}
	}
	s.ended()
}

// closeEncrypted ends our stream and waits for the peer's.
func (s *SecureEndpoint) closeEncrypted() {
	s.mu.Lock()
	s.closed = true
	s.shut = tcpip.ShutdownRead | tcpip.ShutdownWrite
	s.mu.Unlock()
	if s.unread() {
		s.reset(&tcpip.ErrConnectionAborted{})
		s.inner.Close()
		s.bury()
		return
	}
	// An error means that TCP is gone, which linger finds out.
	_ = s.finish()
	s.linger()
}

// linger waits for the peer's last record while nobody reads.
func (s *SecureEndpoint) linger() {
	if !s.lingering.Swap(true) {
		timeout := s.inner.lingerTimeout()
		s.serviceMu.Lock()
		if !s.serviceOver {
			s.lingerTimer = s.inner.stack.Clock().AfterFunc(timeout, s.lingerExpired)
		}
		s.serviceMu.Unlock()
	}
	s.serve()
}

// lingerExpired gives up on a peer that does not close, as upstream does after
// FIN-WAIT-2.
func (s *SecureEndpoint) lingerExpired() {
	switch s.inner.EndpointState() {
	case StateFinWait2:
		s.inner.finWait2TimerExpired()
	case StateClose, StateError:
	default:
		// Our last record is not acknowledged yet. TCP itself gives up some time. The
		// option may say not to linger at all, which must not make a timer spin.
		timeout := max(s.inner.lingerTimeout(), time.Second)
		s.serviceMu.Lock()
		if s.lingerTimer != nil {
			s.lingerTimer.Reset(timeout)
		}
		s.serviceMu.Unlock()
	}
	s.serve()
}

func (e *Endpoint) lingerTimeout() time.Duration {
	e.LockUser()
	defer e.UnlockUser()
	return e.tcpLingerTimeout
}

// serveLingering consumes what the peer still sends. Data has nobody to read it and is
// answered with a reset, as TCP does.
func (s *SecureEndpoint) serveLingering() {
	s.in.mu.Lock()
	more, err := s.nextData()
	data := len(s.in.plain) > 0
	s.releaseInbound()
	s.in.mu.Unlock()
	if more {
		s.startService(0)
		return
	}
	if !data && wouldBlock(err) {
		return
	}
	if data {
		s.reset(&tcpip.ErrConnectionAborted{})
	}
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		s.inner.Close()
		s.bury()
	}
}

// Abort implements tcpip.Endpoint.
func (s *SecureEndpoint) Abort() {
	s.cancel(errAborted)
	e := s.inner
	e.LockUser()
	s.x.mode.CompareAndSwap(uint32(modeUndecided), uint32(modeFailed))
	e.UnlockUser()
	e.Abort()
	if !s.x.is(modeKeying) {
		s.bury()
	}
	s.ended()
}

// bury wipes secrets and gives buffers back. TCP itself may live on.
func (s *SecureEndpoint) bury() {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	if s.dead {
		return
	}
	s.dead = true
	s.serviceMu.Lock()
	for _, t := range []tcpip.Timer{s.serviceTimer, s.lingerTimer, s.holdTimer} {
		if t != nil {
			t.Stop()
		}
	}
	s.serviceTimer, s.lingerTimer, s.holdTimer, s.serviceOver = nil, nil, nil, true
	s.serviceMu.Unlock()
	s.endLiveness()
	s.in.plain, s.in.prefix, s.in.n, s.in.want = nil, nil, 0, 0
	if s.in.buf != nil {
		clear(s.in.buf.b)
		s.in.buf.put()
		s.in.buf = nil
	}
	s.wipeLocked()
	s.cancel(errAborted)
}

// wipe ends the session of a connection that has failed, which its owner may not close
// for long. What was opened already can still be read.
func (s *SecureEndpoint) wipe() {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	s.wipeLocked()
}

// wipeLocked closes the session, once. Called with in.mu and out.mu held.
func (s *SecureEndpoint) wipeLocked() {
	if s.wiped {
		return
	}
	s.wiped = true
	s.inner.LockUser()
	session := s.x.session
	s.inner.UnlockUser()
	if session != nil {
		session.Close()
	}
}
