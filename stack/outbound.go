package stack

import (
	"errors"
	"log/slog"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// A verdict is what a SYN is answered with.
type verdict uint8

const (
	accept  verdict = iota
	refuse          // RST
	explain         // ICMP
	ignore          // nothing
)

// dialOut is the handler of a program's SYN: it dials the far end and does to the
// program what the far end did to us.
func (s *Stack) dialOut(r *tcp.ForwarderRequest) {
	defer s.wg.Done()
	p := s.syns.get(r.ID())
	c := s.conns.add(s, Outbound, remote(p.id), p.dst, p.rule)
	var neg *ENO
	if c.shunned = p.rule.Policy == Opportunistic && s.memory.knows(p.dst, time.Now()); !c.shunned {
		neg = s.newNegotiator(p.rule, p.dst, true)
	}

	v, icmp := s.dialWire(c, p, neg)
	if v == accept && p.rule.Policy == Require {
		v = s.awaitReady(c)
	}
	if v == accept {
		ep, err := s.handshake(r, &c.host)
		if err != nil {
			// The program went away, or we are stopping.
			c.fail(err)
			v = ignore
		} else {
			c.host.ep = ep
		}
	}
	switch v {
	case accept:
	case explain:
		s.counters.unreachable.Add(1)
	case refuse:
		s.counters.refused.Add(1)
	case ignore:
		s.counters.timedOut.Add(1)
	}
	port := localPort(c.wire.ep)
	r.Complete(v == refuse)
	s.syns.remove(p, port)
	if v == accept {
		tcp.SetKeepAlive(c.host.ep, hostKeepAlive)
		s.establish(c, neg)
		return
	}
	if v == explain {
		if err := s.sendUnreachable(p, icmp); err != nil {
			s.log.Debug("no ICMP error for the program", slog.Uint64("conn", c.id), slog.Any("err", err))
		}
	}
	c.settle(neg)
	c.wire.close(true)
	if neg != nil {
		neg.Abandon() // also of what came to no SYN
	}
	s.conns.end(c)
	s.logFailure(c)
}

// dialWire opens c's wire side and returns what the program is to be told; icmp goes
// with explain.
func (s *Stack) dialWire(c *conn, p *pending, neg *ENO) (v verdict, icmp icmpError) {
	ep, err := s.net.NewEndpoint(tcp.ProtocolNumber, networkProtocol(p.dst.Addr()), &c.wire.queue)
	if err != nil {
		c.fail(err)
		return ignore, icmp
	}
	c.wire.ep = ep
	setNegotiator(ep, neg)
	entry, changed := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	c.wire.queue.EventRegister(&entry)
	defer c.wire.queue.EventUnregister(&entry)

	// Not bound: so S's port need be free for this destination only. S is the NIC's only address.
	err = ep.Connect(fullAddress(wireNIC, p.dst))
	if _, started := err.(*tcpip.ErrConnectStarted); err != nil && !started {
		return s.explainDial(c, p, err)
	}
	s.syns.dialled(p, localPort(ep))
	end := time.Now().Add(maxDialTime)
	timer := time.NewTimer(s.opt.timing.firstSYNGap)
	defer timer.Stop()
	for {
		switch st := stateOf(ep); st {
		case legOpen:
			if decided(ep) {
				return accept, icmp
			}
		case legFailed:
			if neg.encrypts() {
				return accept, icmp // it stood, and what became of it is the program's to see
			}
			return s.explainDial(c, p, ep.LastError())
		case legOpening:
		}
		select {
		case <-changed:
		case <-decidedOf(ep):
		case icmp = <-p.icmp:
			if stateOf(ep) != legOpen {
				return explain, icmp
			}
		case now := <-timer.C:
			at := s.syns.givenUp(p)
			if !now.Before(at) || !now.Before(end) {
				return ignore, icmp
			}
			timer.Reset(at.Sub(now))
		case <-s.stop:
			return ignore, icmp
		}
	}
}

// explainDial finds out what netstack's err of a dial means.
func (s *Stack) explainDial(c *conn, p *pending, err tcpip.Error) (verdict, icmpError) {
	if err == nil {
		err = &tcpip.ErrConnectionAborted{}
	}
	if cause := secureError(c.wire.ep); cause != nil {
		// TCP was established, and reset: policy is require and the peer does not encrypt.
		c.failWith(cause)
		s.counters.plainRefused.Add(1)
		return refuse, icmpError{}
	}
	c.fail(err)
	select {
	case e := <-p.icmp: // the router's own words
		return explain, e
	default:
	}
	if e, ok := unreachableCode(err, p.dst.Addr().Is4()); ok {
		return explain, e
	}
	switch err.(type) {
	case *tcpip.ErrConnectionRefused, *tcpip.ErrConnectionReset, *tcpip.ErrConnectionAborted:
		return refuse, icmpError{}
	default: // a time-out, or no port of S is free
		return ignore, icmpError{}
	}
}

// awaitReady waits until the wire side carries protected data. Under a require policy
// one that would be in clear has been reset before.
func (s *Stack) awaitReady(c *conn) verdict {
	timer := time.NewTimer(encryptTime)
	defer timer.Stop()
	select {
	case <-readyOf(c.wire.ep):
	case <-timer.C:
		c.failWith(errNotReady)
		return refuse
	case <-s.stop:
		return ignore
	}
	if c.wire.broken() {
		c.failWith(secureError(c.wire.ep))
		return refuse
	}
	return accept
}

var errNotReady = errors.New("the key exchange does not end")

// establish starts to relay and stays until the negotiation's result is complete, for
// the table and the log.
func (s *Stack) establish(c *conn, neg *ENO) {
	e := c.settle(neg)
	if e.reason == reasonFallback && !c.shunned {
		s.failed(c, reasonFallback)
	}
	tcp.SetKeepAlive(c.wire.ep, s.opt.KeepAlive)
	c.start()
	if e.encrypted {
		timer := time.NewTimer(encryptTime)
		defer timer.Stop()
		select {
		case <-readyOf(c.wire.ep):
		case <-timer.C:
		case <-s.stop:
		}
		e = c.settle(neg)
		switch {
		case c.dir == Inbound:
		case e.sessionID != nil:
			s.memory.succeed(c.remote)
		case neg.cut(c.wire.ep):
			s.failed(c, tcpcrypt.ReasonStripped)
		}
	}
	s.logOpen(c, e)
}

// failed notes that ENO did not reach c's destination. The policy is opportunistic: under
// require no connection gets so far.
func (s *Stack) failed(c *conn, why tcpcrypt.Reason) {
	if until, news := s.memory.fail(c.remote, why, time.Now()); news {
		s.log.Warn("encryption does not get through: offering none for a while", slog.Uint64("conn", c.id),
			slog.Any("remote", c.remote), slog.String("reason", string(why)), slog.Time("until", until))
	}
}

// encrypts reports whether encryption was agreed on, whatever came of it. e may be nil.
func (e *ENO) encrypts() bool {
	if e == nil {
		return false
	}
	o, _ := e.Outcome()
	return o.Encrypted
}

// cut reports whether the key exchange that failed on ep, which we opened, looks as if
// the option was taken out of the handshake's last ACK, so that the peer took Init1 for
// data (RFC 8547, section 4.6): it reset before its first byte, or did not send Init2.
func (e *ENO) cut(ep tcpip.Endpoint) bool {
	if errors.Is(secureError(ep), tcpcrypt.ErrBadMagic) {
		return true
	}
	_, reset := ep.LastError().(*tcpip.ErrConnectionReset)
	e.mu.Lock()
	defer e.mu.Unlock()
	return reset && e.silent
}

// legState is an endpoint's state as a dial sees it.
type legState uint8

const (
	legOpening legState = iota
	legOpen             // or was, and is closing by FIN
	legFailed
)

func stateOf(ep tcpip.Endpoint) legState {
	switch tcp.EndpointState(ep.State()) {
	case tcp.StateInitial, tcp.StateBound, tcp.StateConnecting, tcp.StateSynSent, tcp.StateSynRecv, tcp.StateListen:
		return legOpening
	case tcp.StateError, tcp.StateClose:
		return legFailed
	default:
		return legOpen
	}
}

// localPort returns the port that ep is bound to, 0 if none.
func localPort(ep tcpip.Endpoint) uint16 {
	if ep == nil {
		return 0
	}
	a, err := ep.GetLocalAddress()
	if err != nil {
		return 0
	}
	return a.Port
}
