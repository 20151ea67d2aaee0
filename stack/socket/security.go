package socket

import (
	"context"
	"errors"
	"net"

	"github.com/tcpcrypt/tcpcrypt/stack"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// Security is what protects a connection.
type Security struct {
	Encrypted bool
	Reason    tcpcrypt.Reason // why it is in clear; empty if it is encrypted

	// The following are zero if the connection is in clear.

	// SessionID is the same at both ends if and only if nobody is between them, and
	// different for every connection. It is not secret.
	SessionID tcpcrypt.SessionID
	TEP       tcpcrypt.TEP
	AEAD      tcpcrypt.AEAD
	Role      tcpcrypt.Role
	Resumed   bool // keys come from an earlier connection's secret

	PeerApplicationAware bool

	// GenerationSent and GenerationReceived count the rekeyings of each direction so far.
	GenerationSent, GenerationReceived uint64
}

// Security waits until it is known what protects the connection, as
// tls.Conn.HandshakeContext does, and returns it. A dialled connection knows at once, an
// accepted one when keys are exchanged. What was known stays so after Close.
//
// The error is a *net.OpError with ctx's error, or with why there is nothing to
// tell: the key exchange failed, or the connection was closed before.
func (c *Conn) Security(ctx context.Context) (Security, error) {
	if c.secure != nil {
		select {
		case <-c.secure.Ready(): // first: it is known though ctx is over
		default:
			select {
			case <-c.secure.Ready():
			case <-ctx.Done():
				return Security{}, c.opError("handshake", ctx.Err())
			case <-c.closed:
				return Security{}, c.opError("handshake", net.ErrClosed)
			case <-c.net.done:
				return Security{}, c.opError("handshake", net.ErrClosed)
			}
		}
	}
	s, err := c.security()
	if err != nil {
		return Security{}, c.opError("handshake", err)
	}
	return s, nil
}

func (c *Conn) security() (Security, error) {
	if c.eno == nil {
		reason := tcpcrypt.ReasonLimit // a SYN cookie
		if c.opt.Policy == stack.Bypass {
			reason = tcpcrypt.ReasonPolicy
		}
		return Security{Reason: reason}, nil
	}
	o, decided := c.eno.Outcome()
	if decided && !o.Encrypted {
		return Security{Reason: o.Reason}, nil
	}
	session := c.eno.TCPCryptSession()
	if session == nil {
		if cause := c.secure.Err(); cause != nil {
			return Security{}, protocolError(cause)
		}
		return Security{}, errNoKeys
	}
	sent, received := c.secure.Generations()
	return Security{
		Encrypted:            true,
		SessionID:            session.ID(),
		TEP:                  o.TEP,
		AEAD:                 session.AEAD(),
		Role:                 o.Role,
		Resumed:              o.Resumed,
		PeerApplicationAware: o.PeerApplicationAware,
		GenerationSent:       sent,
		GenerationReceived:   received,
	}, nil
}

// Rekey replaces the keys of both directions: with the next data that is written, or at
// once if the RFC allows it now (RFC 8548, section 3.8). An error says that the connection
// is in clear, tcp.ErrNotEncrypted, or that it has ended.
func (c *Conn) Rekey() error {
	err := tcp.ErrNotEncrypted
	if c.isClosed() {
		err = net.ErrClosed
	} else if c.secure != nil {
		err = c.secure.Rekey()
	}
	if err != nil {
		return c.opError("rekey", err)
	}
	return nil
}

// Forget drops from the Cache the session that the connection used or produced, so that
// no later connection resumes it: whoever failed to authenticate the peer calls it. It
// reports whether there was one. The connection itself goes on.
func (c *Conn) Forget() bool { return c.eno != nil && c.eno.Flush() }

var errNoKeys = errors.New("socket: the connection ended before keys were exchanged")
