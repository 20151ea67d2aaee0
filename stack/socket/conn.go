package socket

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/tcpcrypt/tcpcrypt/stack"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
)

// errTimeout is what a passed deadline makes of a call. It is a net.Error.
var errTimeout = os.ErrDeadlineExceeded

// A Conn is a connection, a net.Conn as a *net.TCPConn is. All methods may be called
// from several goroutines at once. It has no goroutine of its own.
//
// Errors other than io.EOF are *net.OpError. What is in them is for errors.Is:
// net.ErrClosed, os.ErrDeadlineExceeded, syscall.ECONNRESET and others of TCP; of an
// encrypted connection tcpcrypt.ErrAuth, tcpcrypt.ErrTruncated and others of that
// package, and once protection has failed Read and Write go on failing so.
type Conn struct {
	net    *Net
	opt    ConnOptions
	ep     tcpip.Endpoint
	secure *tcp.SecureEndpoint // ep; nil: nothing was negotiated
	eno    *stack.ENO          // nil: the same
	queue  *waiter.Queue

	local, remote netip.AddrPort

	read, write half
	dst         tcpip.SliceWriter // guarded by read.mu
	src         bytes.Reader      // guarded by write.mu
	readShut    atomic.Bool
	broken      atomic.Pointer[error] // what TCP said, once, when it failed

	closed    chan struct{}
	closeOnce sync.Once
}

var _ net.Conn = (*Conn)(nil)

func newConn(n *Net, o ConnOptions) *Conn {
	return &Conn{net: n, opt: o, queue: new(waiter.Queue), closed: make(chan struct{})}
}

// use makes ep, whose events are c.queue's, the connection's.
func (c *Conn) use(ep tcpip.Endpoint) {
	c.ep = ep
	if se, ok := tcp.AsSecure(ep); ok {
		c.secure = se
		c.eno, _ = se.Negotiator().(*stack.ENO)
	}
	c.read.init(c.queue, waiter.ReadableEvents|waiter.EventRdHUp)
	c.write.init(c.queue, waiter.WritableEvents)
}

// connected is called when the connection stands.
func (c *Conn) connected() {
	c.local, c.remote = addrPort(c.ep.GetLocalAddress()), addrPort(c.ep.GetRemoteAddress())
	if c.opt.KeepAlive != (tcp.KeepAlive{}) {
		tcp.SetKeepAlive(c.ep, c.opt.KeepAlive)
	}
}

// abandon ends a connection that nobody will have.
func (c *Conn) abandon() {
	c.net.remove(c)
	c.ep.Abort()
}

// Read implements net.Conn. It waits for the key exchange first. io.EOF means that the
// peer ended its stream, and said so under protection if there is any; nothing else
// does, but CloseRead.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.readSome(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = c.opError("read", err)
	}
	return n, err
}

func (c *Conn) readSome(b []byte) (int, error) {
	h := &c.read
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case c.isClosed():
			return 0, net.ErrClosed
		case len(b) == 0:
			return 0, nil
		case h.expired():
			return 0, errTimeout
		}
		c.dst = b
		res, terr := c.ep.Read(&c.dst, tcpip.ReadOptions{})
		c.dst = nil
		if terr == nil && res.Count > 0 {
			c.ep.ModerateRecvBuf(res.Count)
			return res.Count, nil
		}
		if terr != nil && !wouldBlock(terr) {
			return 0, c.readError(terr)
		}
		if c.readShut.Load() {
			return 0, io.EOF
		}
		c.wait(h)
	}
}

// readError is what a Read that TCP failed is to be told.
func (c *Conn) readError(terr tcpip.Error) error {
	if _, end := terr.(*tcpip.ErrClosedForReceive); !end {
		return c.failed(terr)
	}
	switch {
	case c.isClosed():
		return net.ErrClosed
	case c.readShut.Load():
		return io.EOF
	}
	// Upstream tells a failure once, to whoever asks first, and then says end-of-file.
	if tcp.EndpointState(c.ep.State()) == tcp.StateError {
		if err := c.broken.Load(); err != nil {
			return *err
		}
		return c.failed(&tcpip.ErrConnectionReset{})
	}
	return io.EOF
}

// failed makes terr an error and keeps it, if it is the end of the connection.
func (c *Conn) failed(terr tcpip.Error) error {
	if c.isClosed() {
		return net.ErrClosed
	}
	err := toError(terr)
	if tcp.EndpointState(c.ep.State()) == tcp.StateError {
		c.broken.CompareAndSwap(nil, &err)
	}
	return err
}

// Write implements net.Conn. It waits for the key exchange first, and returns when all
// of b has been taken over, with n < len(b) only together with an error.
func (c *Conn) Write(b []byte) (n int, err error) {
	if n, err = c.writeAll(b); err != nil {
		err = c.opError("write", err)
	}
	return n, err
}

func (c *Conn) writeAll(b []byte) (n int, err error) {
	h := &c.write
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case c.isClosed():
			return n, net.ErrClosed
		case h.expired():
			return n, errTimeout
		case n == len(b):
			return n, nil
		}
		c.src.Reset(b[n:])
		m, terr := c.ep.Write(&c.src, tcpip.WriteOptions{})
		c.src.Reset(nil)
		n += int(m)
		switch {
		case n == len(b):
			return n, nil
		case terr == nil:
		case wouldBlock(terr):
			c.wait(h)
		default:
			if _, ended := terr.(*tcpip.ErrClosedForSend); ended && c.isClosed() {
				return n, net.ErrClosed
			}
			return n, c.failed(terr)
		}
	}
}

func wouldBlock(terr tcpip.Error) bool {
	_, ok := terr.(*tcpip.ErrWouldBlock)
	return ok
}

// wait returns when there may be something to do in h's direction.
func (c *Conn) wait(h *half) {
	select {
	case <-h.wake:
	case <-c.closed:
	case <-c.net.done:
	}
}

func (c *Conn) isClosed() bool {
	select {
	case <-c.closed:
		return true
	case <-c.net.done:
		return true
	default:
		return false
	}
}

// Close implements net.Conn. Calls that wait fail with net.ErrClosed. What was written
// is still sent, and the end of stream behind it, unless there is something that was not
// read, or SetLinger(0) says so: then the connection is reset.
func (c *Conn) Close() error {
	err := c.opError("close", net.ErrClosed)
	c.closeOnce.Do(func() {
		err = nil
		close(c.closed)
		c.read.setDeadline(time.Time{})
		c.write.setDeadline(time.Time{})
		c.net.remove(c)
		c.ep.Close()
	})
	return err
}

// CloseWrite ends our stream: the peer reads io.EOF after what was written.
func (c *Conn) CloseWrite() error {
	return c.shutdown(tcpip.ShutdownWrite, &c.write)
}

// CloseRead says that nothing more will be read: Read returns io.EOF once it has
// returned what is there.
func (c *Conn) CloseRead() error {
	c.readShut.Store(true)
	return c.shutdown(tcpip.ShutdownRead, &c.read)
}

func (c *Conn) shutdown(flags tcpip.ShutdownFlags, h *half) error {
	if c.isClosed() {
		return c.opError("close", net.ErrClosed)
	}
	terr := c.ep.Shutdown(flags)
	h.NotifyEvent(0)
	if terr != nil {
		return opError("close", "shutdown", c.LocalAddr(), c.RemoteAddr(), toError(terr))
	}
	return nil
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.setDeadlines(t, &c.read, &c.write) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadlines(t, &c.read) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, &c.write) }

func (c *Conn) setDeadlines(t time.Time, halves ...*half) error {
	for _, h := range halves {
		if c.isClosed() {
			return c.opError("set", net.ErrClosed)
		}
		h.setDeadline(t)
	}
	return nil
}

// SetLinger sets what Close does with what was written and not acknowledged: with 0
// seconds it is thrown away and the connection reset, otherwise it is sent in the
// background.
func (c *Conn) SetLinger(seconds int) error {
	if c.isClosed() {
		return c.opError("set", net.ErrClosed)
	}
	c.ep.SocketOptions().SetLinger(tcpip.LingerOption{
		Enabled: seconds >= 0,
		Timeout: time.Duration(max(seconds, 0)) * time.Second,
	})
	return nil
}

// SetKeepAlive sets when an idle connection is probed, the zero value never, and so how
// soon a peer that vanished is found dead. An encrypted connection is probed by rekeying,
// which nobody can answer in the peer's place, and then fails with tcp.ErrPeerDead.
func (c *Conn) SetKeepAlive(k tcp.KeepAlive) error {
	if c.isClosed() {
		return c.opError("set", net.ErrClosed)
	}
	tcp.SetKeepAlive(c.ep, k)
	return nil
}

// LocalAddr implements net.Conn; it is a *net.TCPAddr, also after Close.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr implements net.Conn; it is a *net.TCPAddr, also after Close.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

func (c *Conn) opError(op string, err error) error {
	return opError(op, op, c.LocalAddr(), c.RemoteAddr(), err)
}
