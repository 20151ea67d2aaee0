package tcp

import (
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/seqnum"
)

// A KeepAlive says how a connection on which nothing happens is tested. The zero value
// is not at all.
type KeepAlive struct {
	Idle     time.Duration // without data either way before the peer is asked; 0: never
	Interval time.Duration // between looks for its answer, and TCP's probes; 0: Idle
	Count    int           // a peer that has not answered for Count intervals is dead; 0: 1
}

func (k KeepAlive) withDefaults() KeepAlive {
	if k.Interval <= 0 {
		k.Interval = k.Idle
	}
	k.Count = max(k.Count, 1)
	return k
}

// readsNotBelow is how much smaller than it once was, in bytes, a peer's window must be
// to show that its application leaves data unread.
const readsNotBelow = 4 << 10

// minTCPInterval is the least time between TCP's own probes where ours cannot be used. A
// TCP answers segments outside its window once in half a second at most.
const minTCPInterval = time.Second

// SetKeepAlive sets how the peer is found to be dead, before or after it is known
// whether the connection is encrypted. Of a plain one it is TCP's keep-alive. Of an
// encrypted one it is a rekeying without data, which only the true peer can answer (RFC
// 8548, section 3.9): without an answer the connection is reset with ErrPeerDead,
// unless the peer's TCP answers with a window that shows that its application does not
// read, in front of which the question waits. Once either stream has ended nobody
// could ask or answer so, and TCP's keep-alive takes over.
func (s *SecureEndpoint) SetKeepAlive(k KeepAlive) {
	l := &s.live
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opt = k.withDefaults()
	if s.x.is(modeEncrypted) {
		s.startLivenessLocked()
		return
	}
	setTCPKeepAlive(s.inner, l.opt)
}

// SetKeepAlive is SecureEndpoint.SetKeepAlive of ep, an endpoint of this package. Of one
// for which nothing was negotiated it is TCP's keep-alive.
func SetKeepAlive(ep tcpip.Endpoint, k KeepAlive) {
	if s, ok := AsSecure(ep); ok {
		s.SetKeepAlive(k)
		return
	}
	setTCPKeepAlive(ep, k.withDefaults())
}

// setTCPKeepAlive sets TCP's own.
func setTCPKeepAlive(ep tcpip.Endpoint, k KeepAlive) {
	if k.Idle > 0 {
		idle, interval := tcpip.KeepaliveIdleOption(k.Idle), tcpip.KeepaliveIntervalOption(k.Interval)
		_ = ep.SetSockOpt(&idle) // none of them can fail
		_ = ep.SetSockOpt(&interval)
		_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, k.Count)
	}
	ep.SocketOptions().SetKeepAlive(k.Idle > 0)
}

// liveness is what is known of an encrypted connection's peer. Its mu comes before the
// inner endpoint's lock, and no other is taken while it is held.
type liveness struct {
	mu    sync.Mutex
	opt   KeepAlive
	timer tcpip.Timer // nil: never started
	over  bool        // buried

	seen  traffic             // at the last look
	quiet tcpip.MonotonicTime // when seen was found to have changed

	asking  bool
	since   tcpip.MonotonicTime
	target  uint64       // the generation that the peer's answer reaches
	opened  uint64       // records opened when it was asked
	askedTo seqnum.Value // where our stream ended then
	tcp     bool         // TCP's keep-alive runs meanwhile
}

// traffic changes with every byte of data, either way.
type traffic struct{ rcvNxt, sndUna, sndNxt seqnum.Value }

// A view is what TCP knows of the peer.
type view struct {
	traffic
	connected bool
	finished  bool // the peer's stream has ended
	queued    bool // something is not acknowledged, or waits to be sent
	window    seqnum.Size
	shut      bool // our window has no room for a packet, since nobody reads here
	peer      peerWindow
}

func (s *SecureEndpoint) look() (v view) {
	e := s.inner
	e.LockUser()
	defer e.UnlockUser()
	if !e.EndpointState().connected() || e.snd == nil {
		return v
	}
	v.connected = true
	v.traffic = traffic{e.rcv.RcvNxt, e.snd.SndUna, e.snd.SndNxt}
	v.finished = e.rcv.closed
	v.queued = e.snd.SndUna != e.snd.SndNxt || e.snd.writeNext != nil
	v.window, v.peer = e.snd.SndWnd, s.x.window
	v.shut = e.rcv.RcvNxt.Size(e.rcv.RcvAcc) < seqnum.Size(e.amss)
	return v
}

// startLiveness is called once records flow.
func (s *SecureEndpoint) startLiveness() {
	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	if s.live.opt.Idle > 0 {
		setTCPKeepAlive(s.inner, KeepAlive{})
		s.startLivenessLocked()
	}
}

// startLivenessLocked starts with an idle time from now, or ends all. Called with
// live.mu held.
func (s *SecureEndpoint) startLivenessLocked() {
	l := &s.live
	s.tcpMeanwhile(false)
	l.asking = false
	switch {
	case l.over:
	case l.opt.Idle <= 0:
		if l.timer != nil {
			l.timer.Stop()
		}
	default:
		l.seen, l.quiet = s.look().traffic, s.now()
		s.livenessAfter(l.opt.Idle)
	}
}

// livenessAfter sets the timer. Called with live.mu held.
func (s *SecureEndpoint) livenessAfter(d time.Duration) {
	l := &s.live
	if l.timer == nil {
		l.timer = s.inner.stack.Clock().AfterFunc(d, s.checkLiveness)
		return
	}
	l.timer.Reset(d)
}

// tcpMeanwhile turns TCP's keep-alive on where ours cannot tell, since a peer that is
// gone altogether should still be found. Called with live.mu held.
func (s *SecureEndpoint) tcpMeanwhile(on bool) {
	if l := &s.live; l.tcp != on {
		l.tcp = on
		if on {
			k := l.opt
			k.Interval = max(k.Interval, minTCPInterval)
			setTCPKeepAlive(s.inner, k)
		} else {
			setTCPKeepAlive(s.inner, KeepAlive{})
		}
	}
}

func (s *SecureEndpoint) now() tcpip.MonotonicTime { return s.inner.stack.Clock().NowMonotonic() }

// checkLiveness is the timer's.
func (s *SecureEndpoint) checkLiveness() {
	if !s.x.is(modeEncrypted) || s.x.failure.Load() != nil {
		return
	}
	switch s.livenessStep() {
	case livenessAsk:
		s.codec.Rekey()
		s.out.rekey.Store(true)
		s.payOwed()
		s.live.mu.Lock()
		s.live.askedTo = s.look().sndNxt
		s.live.mu.Unlock()
	case livenessDead:
		_ = s.fail(&Error{Error: &tcpip.ErrTimeout{}, cause: ErrPeerDead}, ErrPeerDead)
	default:
	}
}

type livenessAct int

const (
	livenessWait livenessAct = iota
	livenessAsk
	livenessDead
)

// livenessStep decides what is to be done now, and when to look again.
func (s *SecureEndpoint) livenessStep() livenessAct {
	l := &s.live
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over || l.opt.Idle <= 0 {
		return livenessWait
	}
	v := s.look()
	switch {
	case !v.connected:
		return livenessWait
	case v.finished || s.out.ended.Load():
		s.tcpMeanwhile(true)
		return livenessWait
	case l.asking:
		return s.livenessAnswer(v)
	}
	now := s.now()
	if v.traffic != l.seen {
		l.seen, l.quiet = v.traffic, now
		s.livenessAfter(max(l.opt.Idle/4, time.Millisecond))
		return livenessWait
	}
	if idle := now.Sub(l.quiet); idle < l.opt.Idle {
		s.livenessAfter(l.opt.Idle - idle)
		return livenessWait
	}
	s.livenessAfter(l.opt.Interval)
	if v.queued {
		return livenessWait // TCP is asking
	}
	if least := seqnum.Size(header.TCPMinimumSize + s.codec.Overhead()); v.window < least || v.shut {
		s.tcpMeanwhile(true)
		return livenessWait
	}
	s.tcpMeanwhile(false)
	sent, received := s.codec.Generations()
	l.asking, l.since, l.opened = true, now, s.in.opened.Load()
	l.askedTo = v.sndNxt
	if l.target = sent; sent > received {
		return livenessWait // asked already, by a rekeying of the application's
	}
	l.target++
	return livenessAsk
}

// livenessAnswer looks for the answer. Called with live.mu held.
func (s *SecureEndpoint) livenessAnswer(v view) livenessAct {
	l, now := &s.live, s.now()
	opened := s.in.opened.Load()
	if _, received := s.codec.Generations(); received >= l.target || opened != l.opened {
		l.asking = false
		l.seen, l.quiet = v.traffic, now
		s.tcpMeanwhile(false)
		s.livenessAfter(l.opt.Idle)
		return livenessWait
	}
	if s.excused(v, opened) {
		l.since = now
		s.tcpMeanwhile(true)
	}
	if left := l.opt.Interval*time.Duration(l.opt.Count) - now.Sub(l.since); left > 0 {
		s.livenessAfter(min(left, l.opt.Interval))
		return livenessWait
	}
	return livenessDead
}

// excused says whether a peer that has not answered may still live, by what its TCP
// says. What was not even acknowledged excuses nobody, unless the window keeps it from
// being sent. Called with live.mu held.
func (s *SecureEndpoint) excused(v view, opened uint64) bool {
	l := &s.live
	least := seqnum.Size(s.codec.Overhead())
	switch {
	case v.window < least:
		return true
	case v.sndUna.LessThan(l.askedTo):
		return false
	case v.peer.closedAt == opened+1, v.window+readsNotBelow < v.peer.largest:
		return true // its application does not read
	case v.shut:
		return true // the answer has no room
	default:
		// What waits to be opened may be an answer, even if it came before we asked: of
		// two questions that cross each answers the other.
		return s.inner.receiveBufferUsed() > 0
	}
}

// endLiveness stops the timer for good.
func (s *SecureEndpoint) endLiveness() {
	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	s.live.over = true
	if s.live.timer != nil {
		s.live.timer.Stop()
	}
}
