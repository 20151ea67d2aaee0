package stack

import (
	"errors"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
)

// acceptIn is the handler of a remote's SYN: it answers it if there is somebody to
// take the connection, and when the remote has proved its address dials the service.
func (s *Stack) acceptIn(r *tcp.ForwarderRequest) {
	defer s.wg.Done()
	p := s.syns.get(r.ID())
	defer s.syns.remove(p, 0)
	client := remote(p.id)
	dialled, rule, ok := s.inboundRule(client, local(p.id))
	if !ok || !s.listening(p.id.LocalPort, client) {
		r.Complete(true)
		s.counters.refused.Add(1)
		return
	}
	c := s.conns.add(s, Inbound, dialled, client, rule)
	if rule.Policy == Require {
		if why, ok := canEncrypt(rule, p.syn); !ok {
			r.Complete(true)
			s.counters.plainRefused.Add(1)
			c.decidePlain(why)
			c.failWith(errPlain)
			s.conns.end(c)
			s.logFailure(c)
			return
		}
	}
	p.rule, p.neg = rule, s.newNegotiator(rule, client, false)
	ep, err := s.handshake(r, &c.wire)
	r.Complete(false)
	if err != nil {
		c.fail(err)
		s.notAccepted(c, p.neg)
		return
	}
	s.syns.prove(p)
	c.wire.ep = ep
	if !s.deliver(c, p) {
		c.wire.close(true)
		c.host.close(true)
		s.conns.end(c)
		s.logFailure(c)
		return
	}
	tcp.SetKeepAlive(c.host.ep, hostKeepAlive)
	s.establish(c, p.neg)
}

// handshake answers r's SYN and returns the endpoint when the handshake is complete.
func (s *Stack) handshake(r *tcp.ForwarderRequest, l *leg) (tcpip.Endpoint, tcpip.Error) {
	id := r.ID()
	timer := time.AfterFunc(handshakeTime, func() { s.abortHandshake(id) })
	defer timer.Stop()
	return r.CreateEndpoint(&l.queue)
}

// abortHandshake ends the handshake with this tuple.
func (s *Stack) abortHandshake(id nstack.TransportEndpointID) {
	netProto := networkProtocol(toAddr(id.RemoteAddress))
	if ep := s.net.FindTransportEndpoint(netProto, tcp.ProtocolNumber, id, 0); ep != nil {
		ep.Abort()
	}
}

// notAccepted ends c, of which TCP made no connection.
func (s *Stack) notAccepted(c *conn, neg *ENO) {
	if e := c.settle(neg); e.reason == reasonOpening || neg == nil {
		// No handshake, so nobody proved to be there: nothing but the count remembers it.
		s.counters.timedOut.Add(1)
		s.conns.drop(c)
		return
	}
	// It was complete, and the policy is require.
	s.counters.plainRefused.Add(1)
	s.conns.end(c)
	s.logFailure(c)
}

// inboundRule finds what a remote dialled and the rule for it.
func (s *Stack) inboundRule(client, at netip.AddrPort) (dialled netip.AddrPort, rule Rule, ok bool) {
	if s.opt.Inbound == nil || s.isStack(client.Addr()) || client.Addr() == s.opt.Host4 || client.Addr() == s.opt.Host6 {
		return at, rule, false
	}
	dialled = at
	if s.opt.OriginalDst != nil {
		if d, ok := s.opt.OriginalDst(client, at); ok {
			dialled = d
		}
	}
	rule, ok = s.opt.Inbound(dialled, client)
	return dialled, rule, ok
}

func (s *Stack) listening(port uint16, client netip.AddrPort) bool {
	return s.opt.Listening == nil || s.opt.Listening(port, client)
}

// deliver brings c, whose remote has completed the handshake, to the local service. It
// reports false, with the cause noted, if the remote is to be reset.
func (s *Stack) deliver(c *conn, p *pending) bool {
	timer := time.NewTimer(localDialTime)
	defer timer.Stop()
	if d := decidedOf(c.wire.ep); d != nil {
		select {
		case <-d:
		case <-timer.C:
			c.failWith(errNotReady)
			return false
		case <-s.stop:
			c.failWith(errStopped)
			return false
		}
	}
	c.settle(p.neg)
	if c.wire.broken() {
		c.failWith(secureError(c.wire.ep))
		return false
	}
	if err := s.dialLocal(c, p.id.LocalPort, timer.C); err != nil {
		s.counters.refused.Add(1)
		c.failWith(err)
		return false
	}
	return true
}

var (
	errLocalTimeout = errors.New("the local service does not accept")
	errLocalRefused = errors.New("the local service refused")
)

// dialLocal opens c's host side: from the client's own address and port to the host's,
// so the service sees the real client.
func (s *Stack) dialLocal(c *conn, port uint16, timeout <-chan time.Time) error {
	host := s.opt.Host6
	if c.remote.Addr().Is4() {
		host = s.opt.Host4
	}
	ep, err := s.net.NewEndpoint(tcp.ProtocolNumber, networkProtocol(host), &c.host.queue)
	if err != nil {
		return tcpipError(err)
	}
	c.host.ep = ep
	c.mu.Lock()
	c.service = netip.AddrPortFrom(host, port)
	c.mu.Unlock()
	setNegotiator(ep, nil)
	// A client may use one port for connections to several services.
	ep.SocketOptions().SetReuseAddress(true)
	ep.SocketOptions().SetReusePort(true)
	if err := ep.Bind(fullAddress(hostNIC, c.remote)); err != nil {
		return tcpipError(err)
	}
	entry, changed := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	c.host.queue.EventRegister(&entry)
	defer c.host.queue.EventUnregister(&entry)
	service := fullAddress(hostNIC, netip.AddrPortFrom(host, port))
	err = ep.Connect(service)
	for end := time.Now().Add(localPortTime); time.Now().Before(end); err = ep.Connect(service) {
		if _, taken := err.(*tcpip.ErrBadLocalAddress); !taken {
			break
		}
		if s.endTimeWait(c.remote, service) {
			continue
		}
		// The old connection's local leg ends a little later than its wire side did.
		select {
		case <-time.After(localPortCheck):
		case <-timeout:
			return errLocalTimeout
		case <-s.stop:
			return errStopped
		}
	}
	if _, started := err.(*tcpip.ErrConnectStarted); err != nil && !started {
		return tcpipError(err)
	}
	for {
		switch stateOf(ep) {
		case legOpen:
			return nil
		case legFailed:
			if err := ep.LastError(); err != nil {
				return tcpipError(err)
			}
			return errLocalRefused
		case legOpening:
		}
		select {
		case <-changed:
		case <-timeout:
			return errLocalTimeout
		case <-s.stop:
			return errStopped
		}
	}
}

// endTimeWait ends what is left of an earlier connection from client to service, if it
// is over but for TIME_WAIT, and reports whether there was one. The client has given
// the same port to a new connection, which it and its TCP decide: ours leaves the wire
// side's TIME_WAIT after a second for it, others at once if the service closed first.
func (s *Stack) endTimeWait(client netip.AddrPort, service tcpip.FullAddress) bool {
	id := nstack.TransportEndpointID{
		LocalAddress: fromAddr(client.Addr()), LocalPort: client.Port(),
		RemoteAddress: service.Addr, RemotePort: service.Port,
	}
	ep := s.net.FindTransportEndpoint(networkProtocol(client.Addr()), tcp.ProtocolNumber, id, hostNIC)
	old, ok := ep.(interface{ State() uint32 })
	if !ok || tcp.EndpointState(old.State()) != tcp.StateTimeWait {
		return false
	}
	ep.Abort()
	return true
}
