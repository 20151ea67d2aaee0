package socket

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/tcpcrypt/tcpcrypt/stack"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
)

// backlog is how many connections a listener holds that were not accepted yet, and how
// many half-open ones before it answers with SYN cookies, which have no room for ENO.
// Linux's default.
const backlog = 4096

// A Listener is a net.Listener. Its connections are *Conn.
type Listener struct {
	net   *Net
	opt   ConnOptions
	ep    tcpip.Endpoint
	queue waiter.Queue
	local netip.AddrPort
	in    half

	closed    chan struct{}
	closeOnce sync.Once
}

var _ net.Listener = (*Listener)(nil)

// Listen listens on local; port 0 lets the stack choose. 0.0.0.0 is all addresses of
// IPv4; :: and the zero address are all addresses. o is for every connection.
//
// Under a require policy a connection that would be in clear is reset, and never
// returned by Accept.
func (n *Net) Listen(local netip.AddrPort, o ConnOptions) (*Listener, error) {
	addr := local.Addr().Unmap()
	if !addr.IsValid() {
		addr = netip.IPv6Unspecified()
	}
	local = netip.AddrPortFrom(addr, local.Port())
	l := &Listener{net: n, opt: o, closed: make(chan struct{})}
	if err := l.listen(local); err != nil {
		if l.isClosed() {
			err = net.ErrClosed
		}
		return nil, opError("listen", "bind", nil, net.TCPAddrFromAddrPort(local), err)
	}
	return l, nil
}

func (l *Listener) listen(local netip.AddrPort) error {
	if _, err := l.net.negotiator(l.opt, false, netip.AddrPort{}); err != nil {
		return fmt.Errorf("%w: %w", errOptions, err)
	}
	ep, terr := l.net.stack.NewEndpoint(tcp.ProtocolNumber, protocolOf(local.Addr()), &l.queue)
	if terr != nil {
		return toError(terr)
	}
	l.ep = ep
	l.in.init(&l.queue, waiter.ReadableEvents)
	// As package net does: connections of an earlier listener do not keep a new one away.
	ep.SocketOptions().SetReuseAddress(true)
	if terr := ep.Bind(full(local)); terr != nil {
		ep.Close()
		return toError(terr)
	}
	bound := addrPort(ep.GetLocalAddress())
	l.local = netip.AddrPortFrom(local.Addr(), bound.Port())
	// Known before the first SYN, whose negotiator is looked for here.
	if err := l.net.addListener(l); err != nil {
		ep.Close()
		return err
	}
	if terr := ep.Listen(backlog); terr != nil {
		l.net.removeListener(l)
		ep.Close()
		return toError(terr)
	}
	return nil
}

func (n *Net) addListener(l *Listener) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners == nil {
		return net.ErrClosed
	}
	// netstack would let one listen on all addresses beside one on a single address.
	for other := range n.listeners {
		if l.local.Port() == other.local.Port() &&
			(covers(l.local.Addr(), other.local.Addr()) || covers(other.local.Addr(), l.local.Addr())) {
			return syscall.EADDRINUSE
		}
	}
	n.listeners[l] = struct{}{}
	return nil
}

// covers reports whether who listens on on listens on a.
func covers(on, a netip.Addr) bool {
	return on == a || on.IsUnspecified() && (on.Is6() || a.Is4())
}

func (n *Net) removeListener(l *Listener) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.listeners, l)
}

// Accept implements net.Listener; see AcceptConn.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.AcceptConn()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// AcceptConn waits for the next connection. Of an encrypted one the key exchange goes
// on meanwhile, so that a slow peer delays nobody else: Read and Write wait for it, and
// Conn.Security does too.
func (l *Listener) AcceptConn() (*Conn, error) {
	l.in.mu.Lock()
	defer l.in.mu.Unlock()
	for {
		c, err := l.accept()
		switch {
		case err != nil:
			return nil, opError("accept", "accept", nil, l.Addr(), err)
		case c != nil:
			return c, nil
		}
	}
}

// accept waits for a connection; nil, nil says that it was one not to be returned.
func (l *Listener) accept() (*Conn, error) {
	for {
		if l.isClosed() {
			return nil, net.ErrClosed
		}
		if l.in.expired() {
			return nil, errTimeout
		}
		ep, queue, terr := l.ep.Accept(nil)
		if terr == nil {
			return l.take(ep, queue), nil
		}
		if !wouldBlock(terr) {
			if l.isClosed() {
				return nil, net.ErrClosed
			}
			return nil, toError(terr)
		}
		select {
		case <-l.in.wake:
		case <-l.closed:
		case <-l.net.done:
		}
	}
}

// take makes a Conn of what TCP accepted, nil if it is not to be returned.
func (l *Listener) take(ep tcpip.Endpoint, queue *waiter.Queue) *Conn {
	c := newConn(l.net, l.opt)
	c.queue = queue
	c.use(ep)
	switch {
	case l.opt.Policy == stack.Require && (c.secure == nil || !c.secure.Encrypted()):
		// TCP has reset it, or will not have been asked: a SYN cookie.
		ep.Abort()
		return nil
	case !l.net.add(c):
		ep.Abort()
		return nil
	}
	c.connected()
	return c
}

// SetDeadline sets until when Accept waits; the zero time is for ever.
func (l *Listener) SetDeadline(t time.Time) error {
	if l.isClosed() {
		return opError("set", "", nil, l.Addr(), net.ErrClosed)
	}
	l.in.setDeadline(t)
	return nil
}

// Close ends the listener: Accept fails, and connections that were not accepted are
// reset. Those that were live on.
func (l *Listener) Close() error {
	err := opError("close", "", nil, l.Addr(), net.ErrClosed)
	l.closeOnce.Do(func() {
		err = nil
		close(l.closed)
		l.in.setDeadline(time.Time{})
		l.ep.Close()
		l.net.removeListener(l)
	})
	return err
}

func (l *Listener) isClosed() bool {
	select {
	case <-l.closed:
		return true
	case <-l.net.done:
		return true
	default:
		return false
	}
}

// Addr implements net.Listener; it is a *net.TCPAddr.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.local) }
