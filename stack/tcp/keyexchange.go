package tcp

import (
	"context"
	"errors"
	"fmt"
	"io"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// keyExchange runs the session's handshake and then lets records flow. It is a
// goroutine of the endpoint, from the decision until the exchange is done or the
// connection has ended, and no longer than the deadline.
func (s *SecureEndpoint) keyExchange(session Session) {
	clock := s.inner.stack.Clock()
	deadline := clock.AfterFunc(s.inner.protocol.ext.HandshakeTimeout, func() { s.cancel(ErrHandshakeTimeout) })
	defer deadline.Stop()

	raw := &rawStream{s: s, ctx: s.ctx}
	codec, err := session.Handshake(s.ctx, raw)
	if err != nil {
		s.keyExchangeFailed(raw, err)
		return
	}
	s.codec = codec
	s.mu.Lock()
	shut, closed, rekey := s.shut, s.closed, s.rekeyWhenReady
	if s.ctx.Err() == nil {
		s.x.mode.Store(uint32(modeEncrypted))
	}
	s.mu.Unlock()
	if err := context.Cause(s.ctx); err != nil {
		s.keyExchangeFailed(raw, err)
		return
	}
	s.readyOnce.Do(func() { close(s.ready) })
	switch {
	case closed:
		s.closeEncrypted()
	case shut != 0:
		s.shutdownEncrypted(shut)
	}
	s.startLiveness()
	if rekey && !closed {
		_ = s.Rekey() // too late if the stream was shut down meanwhile
	}
	s.arm(waiter.ReadableEvents)
	s.user.Notify(waiter.ReadableEvents | waiter.WritableEvents)
}

func (s *SecureEndpoint) keyExchangeFailed(raw *rawStream, err error) {
	cause := context.Cause(s.ctx)
	switch {
	case raw.err != nil:
		// TCP's own failure, a peer's reset say, stays what it is.
		s.x.fail(raw.err, fmt.Errorf("key exchange: %s", raw.err))
	case cause != nil && !errors.Is(err, cause):
		err = fmt.Errorf("key exchange: %w", cause)
		s.x.fail(abortError(err), err)
	default:
		err = fmt.Errorf("key exchange: %w", err)
		s.x.fail(abortError(err), err)
	}
	s.reset(s.x.failure.Load().tcp)
	s.mu.Lock()
	closed := s.closed
	s.x.mode.Store(uint32(modeFailed))
	s.mu.Unlock()
	s.bury()
	if closed {
		s.inner.Close()
	}
	s.readyOnce.Do(func() { close(s.ready) })
	s.user.Notify(waiter.EventHUp | waiter.EventErr | waiter.ReadableEvents | waiter.WritableEvents)
}

// rawStream is the connection's bytes as TCP carries them, for a handshake.
type rawStream struct {
	s   *SecureEndpoint
	ctx context.Context
	err tcpip.Error // TCP's failure, if there was one
}

// Read implements io.Reader. It waits for at least one byte.
func (r *rawStream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if n := copy(p, r.s.in.prefix); n > 0 {
			r.s.in.prefix = r.s.in.prefix[n:]
			return n, nil
		}
		w := tcpip.SliceWriter(p)
		res, err := r.s.inner.Read(&w, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			if res.Count > 0 {
				return res.Count, nil
			}
		case *tcpip.ErrWouldBlock:
		case *tcpip.ErrClosedForReceive:
			return 0, io.ErrUnexpectedEOF
		default:
			return 0, r.failed(err)
		}
		if err := r.wait(); err != nil {
			return 0, err
		}
	}
}

// Write implements io.Writer. It queues all of p at once, whatever the send buffer
// holds: handshakes are short.
func (r *rawStream) Write(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, context.Cause(r.ctx)
	}
	if len(p) == 0 {
		return 0, nil
	}
	view := buffer.NewViewWithData(p)
	if _, err := r.s.inner.queueBytes(view, true); err != nil {
		return 0, r.failed(err)
	}
	return len(p), nil
}

// Unread implements Stream.
func (r *rawStream) Unread(p []byte) {
	r.s.in.prefix = append(append([]byte(nil), p...), r.s.in.prefix...)
}

func (r *rawStream) wait() error {
	select {
	case <-r.s.kick:
		return nil
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
}

func (r *rawStream) failed(err tcpip.Error) error {
	r.err = err
	return fmt.Errorf("tcp: %s", err)
}
