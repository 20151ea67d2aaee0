package tcptest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
)

// Patience is how long a blocking call waits before the test is taken to hang.
const Patience = 20 * time.Second

var errPatience = errors.New("tcptest: nothing happened for too long")

// An Error is a tcpip.Error as an error.
type Error struct{ TCP tcpip.Error }

func (e *Error) Error() string { return e.TCP.String() }

// A Conn is a blocking stream over an endpoint. Reads may run beside writes.
type Conn struct {
	tb    testing.TB
	EP    tcpip.Endpoint
	Queue *waiter.Queue
}

// Full is the address for netstack.
func Full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: NIC, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

// NewConn returns a Conn on a new endpoint of s, for a family's addresses.
func (p *Pair) NewConn(s *stack.Stack, family netip.Addr) *Conn {
	p.tb.Helper()
	var wq waiter.Queue
	ep, err := s.NewEndpoint(tcp.ProtocolNumber, protocolOf(family), &wq)
	if err != nil {
		p.tb.Fatalf("NewEndpoint: %s", err)
	}
	return &Conn{tb: p.tb, EP: ep, Queue: &wq}
}

// Wrap returns a Conn on an endpoint.
func (p *Pair) Wrap(ep tcpip.Endpoint, wq *waiter.Queue) *Conn {
	return &Conn{tb: p.tb, EP: ep, Queue: wq}
}

// Dial connects from s and waits until data may flow.
func (p *Pair) Dial(s *stack.Stack, to netip.AddrPort) (*Conn, error) {
	p.tb.Helper()
	c := p.NewConn(s, to.Addr())
	return c, c.Connect(to)
}

// Connect connects and waits until data may flow.
func (c *Conn) Connect(to netip.AddrPort) error {
	c.tb.Helper()
	if err := c.StartConnect(to); err != nil {
		return err
	}
	return c.WaitReady()
}

// StartConnect sends the SYN.
func (c *Conn) StartConnect(to netip.AddrPort) error {
	err := c.EP.Connect(Full(to))
	if _, ok := err.(*tcpip.ErrConnectStarted); ok || err == nil {
		return nil
	}
	return &Error{err}
}

// WaitReady waits until data may flow or the connection has failed.
func (c *Conn) WaitReady() error {
	if s, ok := tcp.AsSecure(c.EP); ok {
		select {
		case <-s.Ready():
		case <-time.After(Patience):
			return errPatience
		}
		if err := s.Err(); err != nil {
			return err
		}
		if err := c.EP.LastError(); err != nil {
			return &Error{err}
		}
		return nil
	}
	err := c.wait(waiter.WritableEvents|waiter.EventErr|waiter.EventHUp, func() tcpip.Error {
		if c.EP.Readiness(waiter.WritableEvents) == 0 {
			return &tcpip.ErrWouldBlock{}
		}
		return nil
	})
	if err == nil {
		if e := c.EP.LastError(); e != nil {
			return &Error{e}
		}
	}
	return err
}

// wait calls f at each event until it would no longer block.
func (c *Conn) wait(mask waiter.EventMask, f func() tcpip.Error) error {
	entry, ch := waiter.NewChannelEntry(mask | waiter.EventErr | waiter.EventHUp)
	c.Queue.EventRegister(&entry)
	defer c.Queue.EventUnregister(&entry)
	var timeout <-chan time.Time
	for {
		err := f()
		if _, ok := err.(*tcpip.ErrWouldBlock); !ok {
			if err != nil {
				return &Error{err}
			}
			return nil
		}
		if timeout == nil {
			t := time.NewTimer(Patience)
			defer t.Stop()
			timeout = t.C
		}
		select {
		case <-ch:
		case <-timeout:
			return errPatience
		}
	}
}

// Read implements io.Reader.
func (c *Conn) Read(b []byte) (n int, err error) {
	err = c.wait(waiter.ReadableEvents|waiter.EventRdHUp, func() tcpip.Error {
		w := tcpip.SliceWriter(b)
		res, err := c.EP.Read(&w, tcpip.ReadOptions{})
		n = res.Count
		return err
	})
	var e *Error
	if errors.As(err, &e) {
		if _, eof := e.TCP.(*tcpip.ErrClosedForReceive); eof {
			return n, io.EOF
		}
	}
	if err == nil {
		c.EP.ModerateRecvBuf(n)
	}
	return n, err
}

// Write implements io.Writer.
func (c *Conn) Write(b []byte) (n int, err error) {
	var r bytes.Reader
	for n < len(b) {
		err = c.wait(waiter.WritableEvents, func() tcpip.Error {
			r.Reset(b[n:])
			m, err := c.EP.Write(&r, tcpip.WriteOptions{})
			n += int(m)
			return err
		})
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// CloseWrite ends our stream.
func (c *Conn) CloseWrite() error {
	if err := c.EP.Shutdown(tcpip.ShutdownWrite); err != nil {
		return &Error{err}
	}
	return nil
}

// Close closes the endpoint.
func (c *Conn) Close() { c.EP.Close() }

// Secure returns the endpoint as a SecureEndpoint, or fails the test.
func (c *Conn) Secure() *tcp.SecureEndpoint {
	c.tb.Helper()
	s, ok := tcp.AsSecure(c.EP)
	if !ok {
		c.tb.Fatalf("endpoint is a %T, want a SecureEndpoint", c.EP)
	}
	return s
}

// A Listener accepts connections.
type Listener struct{ Conn }

// Listen listens on an address of s.
func (p *Pair) Listen(s *stack.Stack, on netip.AddrPort, backlog int) *Listener {
	p.tb.Helper()
	l := &Listener{*p.NewConn(s, on.Addr())}
	if err := l.EP.Bind(Full(on)); err != nil {
		p.tb.Fatalf("Bind: %s", err)
	}
	if err := l.EP.Listen(backlog); err != nil {
		p.tb.Fatalf("Listen: %s", err)
	}
	return l
}

// Accept waits for a connection of TCP; keys may still be exchanged.
func (l *Listener) Accept() (*Conn, error) {
	c := &Conn{tb: l.tb}
	err := l.wait(waiter.ReadableEvents, func() (err tcpip.Error) {
		c.EP, c.Queue, err = l.EP.Accept(nil)
		return err
	})
	return c, err
}

// Accepted is a connection that a Forwarder took.
type Accepted struct {
	*Conn
	Err error
}

// Forward answers SYNs to any address of s that has no endpoint, and sends the
// connections on the channel that it returns.
func (p *Pair) Forward(ctx context.Context, s *stack.Stack) <-chan Accepted {
	ch := make(chan Accepted, 16)
	f := tcp.NewForwarder(s, 0, 64, func(r *tcp.ForwarderRequest) {
		var wq waiter.Queue
		ep, err := r.CreateEndpoint(&wq)
		r.Complete(err != nil)
		a := Accepted{Conn: &Conn{tb: p.tb, EP: ep, Queue: &wq}}
		if err != nil {
			a.Err = &Error{err}
		}
		select {
		case ch <- a:
		case <-ctx.Done():
		}
	})
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, f.HandlePacket)
	return ch
}
