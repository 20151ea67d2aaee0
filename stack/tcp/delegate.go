package tcp

import (
	"io"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// The methods of tcpip.Endpoint, each written out: were upstream's endpoint embedded,
// a method that upstream adds would go past the record layer.
var _ tcpip.Endpoint = (*SecureEndpoint)(nil)

// Read implements tcpip.Endpoint.
func (s *SecureEndpoint) Read(dst io.Writer, opts tcpip.ReadOptions) (tcpip.ReadResult, tcpip.Error) {
	for {
		switch mode(s.x.mode.Load()) {
		case modePlain:
			if s.x.watched.Load() {
				return s.readWatched(dst, opts)
			}
			res, err := s.inner.Read(dst, opts)
			if !opts.Peek {
				s.received.Add(uint64(res.Count))
			}
			return res, err
		case modeEncrypted:
			return s.readEncrypted(dst, opts)
		case modeKeying:
			return tcpip.ReadResult{}, s.notYet()
		case modeFailed:
			return tcpip.ReadResult{}, s.failed(&tcpip.ErrClosedForReceive{})
		default:
			err, decided := s.undecided(s.inner.checkReadLocked)
			if !decided {
				return tcpip.ReadResult{}, err
			}
		}
	}
}

// Write implements tcpip.Endpoint.
func (s *SecureEndpoint) Write(p tcpip.Payloader, opts tcpip.WriteOptions) (int64, tcpip.Error) {
	for {
		switch mode(s.x.mode.Load()) {
		case modePlain:
			n, err := s.inner.Write(p, opts)
			s.sent.Add(uint64(n))
			return n, err
		case modeEncrypted:
			return s.writeEncrypted(p, opts)
		case modeKeying:
			return 0, s.notYet()
		case modeFailed:
			return 0, s.failed(&tcpip.ErrClosedForSend{})
		default:
			err, decided := s.undecided(func() tcpip.Error {
				_, err := s.inner.sendSpaceLocked()
				return err
			})
			if !decided {
				return 0, err
			}
		}
	}
}

// undecided returns what check, under the lock of TCP, finds wrong with using an
// endpoint that is not decided; or true if it has been decided by now.
func (s *SecureEndpoint) undecided(check func() tcpip.Error) (err tcpip.Error, decided bool) {
	s.inner.LockUser()
	defer s.inner.UnlockUser()
	if !s.x.is(modeUndecided) {
		return nil, true
	}
	if err := check(); err != nil {
		return err, false
	}
	return &tcpip.ErrWouldBlock{}, false
}

// notYet is what Read and Write return during the key exchange.
func (s *SecureEndpoint) notYet() tcpip.Error {
	if f := s.x.failure.Load(); f != nil {
		return f.tcp
	}
	return &tcpip.ErrWouldBlock{}
}

// failed returns why the connection failed, or otherwise if it was only closed.
func (s *SecureEndpoint) failed(otherwise tcpip.Error) tcpip.Error {
	if f := s.x.failure.Load(); f != nil {
		return f.tcp
	}
	return otherwise
}

// Readiness implements waiter.Waitable. It takes no lock of the record layer: a
// record that is not complete counts as readable, and a Read that consumes it and
// returns ErrWouldBlock makes it unreadable again.
func (s *SecureEndpoint) Readiness(mask waiter.EventMask) waiter.EventMask {
	switch mode(s.x.mode.Load()) {
	case modeKeying:
		return s.inner.Readiness(mask) &^ (waiter.ReadableEvents | waiter.WritableEvents)
	case modeEncrypted:
		r := s.inner.Readiness(mask)
		if s.x.failure.Load() != nil {
			return r | mask
		}
		if s.in.pending.Load() {
			r |= mask & waiter.ReadableEvents
		}
		if s.out.ended.Load() {
			r |= mask & waiter.WritableEvents
		}
		return r
	case modePlain:
		r := s.inner.Readiness(mask)
		if r&waiter.ReadableEvents != 0 && s.x.watched.Load() && s.inner.EndpointState().connected() && !s.readableWatched() {
			r &^= waiter.ReadableEvents
		}
		return r
	default:
		return s.inner.Readiness(mask)
	}
}

// Shutdown implements tcpip.Endpoint.
func (s *SecureEndpoint) Shutdown(flags tcpip.ShutdownFlags) tcpip.Error {
	for {
		switch mode(s.x.mode.Load()) {
		case modeEncrypted:
			return s.shutdownEncrypted(flags)
		case modeKeying:
			if s.shutdownKeying(flags) {
				return nil
			}
		case modeUndecided:
			if err, ok := s.shutdownUndecided(flags); ok {
				return err
			}
		default:
			return s.inner.Shutdown(flags)
		}
	}
}

// Accept implements tcpip.Endpoint. A connection about which the extension had
// nothing to say is upstream's endpoint.
func (s *SecureEndpoint) Accept(peerAddr *tcpip.FullAddress) (tcpip.Endpoint, *waiter.Queue, tcpip.Error) {
	ep, queue, err := s.inner.Accept(peerAddr)
	if err != nil {
		return nil, nil, err
	}
	e := ep.(*Endpoint)
	e.LockUser()
	negotiated := e.ext != nil && e.ext.neg != nil
	e.UnlockUser()
	if !negotiated {
		return ep, queue, nil
	}
	child := adopt(e, nil)
	return child, child.user, nil
}

// LastError implements tcpip.Endpoint.
func (s *SecureEndpoint) LastError() tcpip.Error {
	if f := s.x.failure.Load(); f != nil {
		s.inner.LastError()
		if s.lastErrorRead.Swap(true) {
			return nil
		}
		return f.tcp
	}
	err := s.inner.LastError()
	if err != nil && s.Encrypted() {
		if st := s.inner.EndpointState(); st == StateError || st == StateClose {
			// Upstream tells it once, and then says end-of-file.
			s.lastErrorRead.Store(true)
			s.x.fail(err, &tcpError{err})
		}
	}
	return err
}

// GetSockOptInt implements tcpip.Endpoint. The receive queue of an encrypted
// connection is the plaintext that is there.
func (s *SecureEndpoint) GetSockOptInt(opt tcpip.SockOptInt) (int, tcpip.Error) {
	v, err := s.inner.GetSockOptInt(opt)
	if opt == tcpip.ReceiveQueueSizeOption && err == nil && s.Encrypted() {
		return s.buffered(), nil
	}
	return v, err
}

// Connect implements tcpip.Endpoint.
func (s *SecureEndpoint) Connect(address tcpip.FullAddress) tcpip.Error {
	return s.inner.Connect(address)
}

// Disconnect implements tcpip.Endpoint.
func (s *SecureEndpoint) Disconnect() tcpip.Error { return s.inner.Disconnect() }

// Listen implements tcpip.Endpoint.
func (s *SecureEndpoint) Listen(backlog int) tcpip.Error { return s.inner.Listen(backlog) }

// Bind implements tcpip.Endpoint.
func (s *SecureEndpoint) Bind(address tcpip.FullAddress) tcpip.Error { return s.inner.Bind(address) }

// GetLocalAddress implements tcpip.Endpoint.
func (s *SecureEndpoint) GetLocalAddress() (tcpip.FullAddress, tcpip.Error) {
	return s.inner.GetLocalAddress()
}

// GetRemoteAddress implements tcpip.Endpoint.
func (s *SecureEndpoint) GetRemoteAddress() (tcpip.FullAddress, tcpip.Error) {
	return s.inner.GetRemoteAddress()
}

// SetSockOpt implements tcpip.Endpoint.
func (s *SecureEndpoint) SetSockOpt(opt tcpip.SettableSocketOption) tcpip.Error {
	return s.inner.SetSockOpt(opt)
}

// SetSockOptInt implements tcpip.Endpoint.
func (s *SecureEndpoint) SetSockOptInt(opt tcpip.SockOptInt, v int) tcpip.Error {
	return s.inner.SetSockOptInt(opt, v)
}

// GetSockOpt implements tcpip.Endpoint.
func (s *SecureEndpoint) GetSockOpt(opt tcpip.GettableSocketOption) tcpip.Error {
	return s.inner.GetSockOpt(opt)
}

// State implements tcpip.Endpoint.
func (s *SecureEndpoint) State() uint32 { return s.inner.State() }

// ModerateRecvBuf implements tcpip.Endpoint.
func (s *SecureEndpoint) ModerateRecvBuf(copied int) { s.inner.ModerateRecvBuf(copied) }

// Info implements tcpip.Endpoint.
func (s *SecureEndpoint) Info() tcpip.EndpointInfo { return s.inner.Info() }

// Stats implements tcpip.Endpoint.
func (s *SecureEndpoint) Stats() tcpip.EndpointStats { return s.inner.Stats() }

// SetOwner implements tcpip.Endpoint.
func (s *SecureEndpoint) SetOwner(owner tcpip.PacketOwner) { s.inner.SetOwner(owner) }

// SocketOptions implements tcpip.Endpoint.
func (s *SecureEndpoint) SocketOptions() *tcpip.SocketOptions { return s.inner.SocketOptions() }

// Wait returns when the endpoint is closed or has failed.
func (s *SecureEndpoint) Wait() { s.inner.Wait() }
