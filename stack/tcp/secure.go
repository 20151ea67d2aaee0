package tcp

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// SecureEndpoint is a TCP endpoint that carries plaintext: Read and Write are those
// of upstream's endpoint if the connection is plain, and go through the record layer
// if it is encrypted. It holds upstream's endpoint, and alone is never known to the
// stack's demultiplexer.
//
// Its waiter queue is the one that was given to NewEndpoint or CreateEndpoint, or
// that Accept returned. As upstream, events may be signalled under locks of TCP: a
// listener wakes somebody and calls nothing of the endpoint.
//
// Lock order: in.mu, out.mu, mu, then the inner endpoint's. None of them is held
// while the extension is called, but for in.mu or out.mu around Codec.
type SecureEndpoint struct {
	inner *Endpoint
	x     *endpointExtension // inner.ext

	entry waiter.Entry // on the inner endpoint's queue
	user  *waiter.Queue
	queue waiter.Queue // what user points to if we made it

	decided, ready         chan struct{}
	decidedOnce, readyOnce sync.Once

	// codec is set before the mode becomes encrypted, and not changed.
	codec Codec
	in    inbound
	out   outbound

	// kick wakes the key exchange. cancel ends it.
	kick   chan struct{}
	ctx    context.Context
	cancel context.CancelCauseFunc

	// service opens records and sends what is owed when nobody reads or writes. It
	// runs in a timer's goroutine and waits for nothing but a lock.
	serviceMu     sync.Mutex
	serviceTimer  tcpip.Timer
	serviceArmed  atomic.Bool
	serviceSeen   atomic.Uint64 // in.taken when the timer was started
	serviceOver   bool          // guarded by serviceMu, as are the timers
	lingerTimer   tcpip.Timer
	holdTimer     tcpip.Timer // of a misleading stream
	lastErrorRead atomic.Bool

	mu sync.Mutex
	// shut is what the user has shut down while encrypted or keying. closed is set
	// by Close. Both guarded by mu.
	shut   tcpip.ShutdownFlags
	closed bool
	// rekeyWhenReady says that Rekey was called during the key exchange. Guarded by mu.
	rekeyWhenReady bool

	// lingering says that the user is done with both directions and only the peer's
	// end of stream is waited for.
	lingering atomic.Bool
	// dead says that secrets and buffers are gone. Guarded by in.mu and out.mu: who
	// writes holds both.
	dead bool
	// wiped says that the session's secrets are gone. Guarded as dead is.
	wiped bool

	sent, received atomic.Uint64

	live liveness
}

// AsSecure returns ep as a SecureEndpoint if it is one.
func AsSecure(ep tcpip.Endpoint) (*SecureEndpoint, bool) {
	s, ok := ep.(*SecureEndpoint)
	return s, ok
}

// NewEndpoint wraps upstream's: endpoints of a stack with an extension are secure
// ones.
func (p *protocol) NewEndpoint(netProto tcpip.NetworkProtocolNumber, waiterQueue *waiter.Queue) (tcpip.Endpoint, tcpip.Error) {
	if p.ext == nil || p.ext.Extension == nil {
		return p.newEndpointUpstream(netProto, waiterQueue)
	}
	e := newEndpoint(p.stack, p, netProto, new(waiter.Queue))
	e.ext = &endpointExtension{ask: true}
	s := newSecure(e, waiterQueue)
	e.ext.owner = s
	s.attach()
	return s, nil
}

// CreateEndpoint wraps upstream's. It asks the extension first, since the endpoint of
// a plain connection is upstream's own, with the caller's queue.
func (r *ForwarderRequest) CreateEndpoint(queue *waiter.Queue) (tcpip.Endpoint, tcpip.Error) {
	r.mu.Lock()
	syn, f := r.segment, r.forwarder
	r.mu.Unlock()
	if syn == nil || f.listen.protocol.ext == nil {
		return r.createEndpointUpstream(queue)
	}
	p := f.listen.protocol.ext
	neg := p.ask(syn)
	if neg == nil {
		defer p.answer(syn)
		return r.createEndpointUpstream(queue)
	}
	ep, err := r.createEndpointUpstream(new(waiter.Queue))
	if _, unused := p.answer(syn); unused {
		neg.Abandon()
	}
	if err != nil {
		return nil, err
	}
	return adopt(ep.(*Endpoint), queue), nil
}

// newSecure returns an endpoint around e, which has its extension, that signals its
// events to user, or to a queue of its own if user is nil.
func newSecure(e *Endpoint, user *waiter.Queue) *SecureEndpoint {
	s := &SecureEndpoint{
		inner:   e,
		x:       e.ext,
		user:    user,
		decided: make(chan struct{}),
		ready:   make(chan struct{}),
		kick:    make(chan struct{}, 1),
	}
	if user == nil {
		s.user = &s.queue
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s
}

// attach starts passing on events.
func (s *SecureEndpoint) attach() {
	s.entry.Init((*events)(s), waiter.AllEvents|waiter.EventInternal)
	s.inner.waiterQueue.EventRegister(&s.entry)
}

// adopt wraps an endpoint of a passive open that TCP has established.
func adopt(e *Endpoint, user *waiter.Queue) *SecureEndpoint {
	s := newSecure(e, user)
	e.LockUser()
	s.attach()
	s.x.owner = s
	alive := e.EndpointState().connected()
	if !alive {
		// Nobody owned the session, so end closed it if TCP is gone.
		s.x.mode.CompareAndSwap(uint32(modeKeying), uint32(modeFailed))
	} else {
		s.established()
	}
	e.UnlockUser()
	if !alive {
		s.ended()
	}
	return s
}

// established is called under the lock of TCP once the connection stands and its
// mode is decided.
func (s *SecureEndpoint) established() {
	switch mode(s.x.mode.Load()) {
	case modePlain:
		s.decidedOnce.Do(func() { close(s.decided) })
		s.readyOnce.Do(func() { close(s.ready) })
	case modeKeying:
		s.decidedOnce.Do(func() { close(s.decided) })
		go s.keyExchange(s.x.session)
	default:
		// Refused: the reset that follows ends it.
	}
}

// ended says to whoever waits that there is nothing more to wait for.
func (s *SecureEndpoint) ended() {
	s.decidedOnce.Do(func() { close(s.decided) })
	if !s.x.is(modeKeying) {
		s.readyOnce.Do(func() { close(s.ready) })
	}
}

// events receives the inner endpoint's events, often under its lock.
type events SecureEndpoint

// NotifyEvent implements waiter.EventListener.
func (v *events) NotifyEvent(mask waiter.EventMask) {
	s := (*SecureEndpoint)(v)
	if mask&(waiter.EventHUp|waiter.EventErr) != 0 {
		if st := s.inner.EndpointState(); st == StateError || st == StateClose {
			s.ended()
		}
	}
	switch mode(s.x.mode.Load()) {
	case modeKeying:
		select {
		case s.kick <- struct{}{}:
		default:
		}
	case modeEncrypted:
		s.arm(mask)
	default:
	}
	s.user.Notify(mask)
}

// SetNegotiator sets who negotiates for the connection that Connect will open; nil
// makes it plain. The extension is not asked then. Only before Connect.
func (s *SecureEndpoint) SetNegotiator(n Negotiator) {
	s.inner.LockUser()
	defer s.inner.UnlockUser()
	s.x.ask = false
	s.x.neg = n
	s.x.open = n != nil
}

// Negotiator returns who negotiated for the connection, nil if nobody did.
func (s *SecureEndpoint) Negotiator() Negotiator {
	s.inner.LockUser()
	defer s.inner.UnlockUser()
	return s.x.neg
}

// SetMTU caps the MTU of the path, in bytes with the IP header. Before the connection
// is opened it caps the advertised MSS as well; later, a smaller one makes everything
// in flight that may have been too large be sent again.
func (s *SecureEndpoint) SetMTU(mtu uint32) { s.inner.setMTU(mtu) }

// SetTimeWait sets how long this connection stays in TIME-WAIT, instead of what the
// stack says.
func (s *SecureEndpoint) SetTimeWait(d time.Duration) {
	s.inner.LockUser()
	defer s.inner.UnlockUser()
	s.x.timeWait = &d
}

// Decided is closed when TCP is established and it is known whether the connection
// is encrypted, or when it has failed.
func (s *SecureEndpoint) Decided() <-chan struct{} { return s.decided }

// Ready is closed when data may flow, as plaintext for ever or encrypted, or when the
// connection has failed.
func (s *SecureEndpoint) Ready() <-chan struct{} { return s.ready }

// Encrypted says whether the connection was decided to be encrypted. It then never
// carries plaintext on the wire, and stays so if it fails.
func (s *SecureEndpoint) Encrypted() bool { return s.x.encrypted.Load() }

// Session returns the session of an encrypted connection, else nil.
func (s *SecureEndpoint) Session() Session {
	s.inner.LockUser()
	defer s.inner.UnlockUser()
	return s.x.session
}

// Err returns why the connection was aborted, nil if it was not. It stays, and never
// means end-of-file. Errors of TCP itself before the connection was decided are
// LastError's alone.
func (s *SecureEndpoint) Err() error {
	if f := s.x.failure.Load(); f != nil {
		return f.cause
	}
	return nil
}

// Transferred returns how many bytes of the application's data were written to and
// read from the endpoint.
func (s *SecureEndpoint) Transferred() (sent, received uint64) {
	return s.sent.Load(), s.received.Load()
}

// fail aborts an encrypted connection: RST to the peer, and an error to the user that
// stays.
func (s *SecureEndpoint) fail(tcp tcpip.Error, cause error) tcpip.Error {
	f := s.x.fail(tcp, cause)
	s.reset(f.tcp)
	if s.x.is(modeEncrypted) {
		s.startService(0) // which wipes: our caller may hold a lock of the record layer
	}
	return f.tcp
}

// reset sends RST and drops what is queued either way.
func (s *SecureEndpoint) reset(err tcpip.Error) {
	e := s.inner
	e.LockUser()
	if e.EndpointState().connected() {
		e.resetConnectionLocked(err)
	}
	e.purgeReadQueue()
	e.UnlockUser()
	e.drainClosingSegmentQueue()
	e.waiterQueue.Notify(waiter.EventHUp | waiter.EventErr | waiter.ReadableEvents | waiter.WritableEvents)
}
