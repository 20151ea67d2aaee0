// Package socket is Dial and Listen over a TCP/IP stack of one's own that encrypts with
// tcpcrypt (RFC 8547, RFC 8548). Its connections are ordinary net.Conns and its listeners
// ordinary net.Listeners; there are no certificates, and with a peer that does not
// encrypt it speaks ordinary TCP, unless the policy says otherwise.
//
//	n, err := socket.New(socket.Options{Link: link, Addrs: []netip.Addr{addr}})
//	l, err := n.Listen(netip.AddrPortFrom(addr, 80), socket.ConnOptions{})
//	c, err := n.Dial(ctx, remote, socket.ConnOptions{Policy: stack.Require})
//	s, err := c.Security(ctx) // encrypted? with what? if not, why?
//
// A link is a link endpoint of gVisor's netstack: a TUN device (package tun), an
// in-memory pair for tests (tun.Pipe), or one of netstack's own. The kernel's sockets are
// not involved, and nothing needs root but the opening of a device.
//
// # What is protected
//
// Everything that Write takes and Read returns. Nobody who only listens learns it, and
// who alters a byte causes an error: never wrong bytes, never an io.EOF that the peer
// did not mean. What this does not do is say who the peer is. Both ends of a connection
// have the same Security.SessionID exactly if nobody is between them; whoever has a way
// to authenticate, a signature or a shared password, applies it to that.
//
// # Policy
//
// Opportunistic, the zero value, encrypts if the peer can. Require never carries
// plaintext: Dial fails with a *NotEncryptedError that has the reason, and a listener
// resets such connections without showing them. Bypass offers nothing.
//
// # When keys are there
//
// Dial returns when data may flow. Accept returns earlier, so that a slow peer delays no
// other: Read, Write and Conn.Security wait. With Options.Cache a later connection to a
// peer resumes the session of an earlier one, and needs no key exchange.
//
// # Ends
//
// io.EOF is the peer's own end of stream. All else is a *net.OpError, for errors.Is:
// syscall.ECONNRESET, os.ErrDeadlineExceeded, net.ErrClosed; tcpcrypt.ErrAuth for a record
// that was altered, tcpcrypt.ErrTruncated for a stream that was cut.
package socket
