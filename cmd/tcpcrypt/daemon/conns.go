package daemon

import (
	"encoding/hex"
	"net/netip"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
	"github.com/tcpcrypt/tcpcrypt/stack"
)

// running is the stack, nil while it is not there yet.
func (d *daemon) running() *stack.Stack {
	select {
	case <-d.conns:
		return d.stack
	default:
		return nil
	}
}

// list is what control.PathConns answers.
func (d *daemon) list(closed bool) []control.Conn {
	conns := []control.Conn{}
	if s := d.running(); s != nil {
		for _, c := range s.Conns(closed) {
			conns = append(conns, show(c))
		}
	}
	return conns
}

// conn is what control.PathConn answers.
func (d *daemon) conn(local, remote netip.AddrPort) (control.Conn, bool) {
	if s := d.running(); s != nil {
		for _, c := range s.Conns(false) {
			if c.Remote == remote && (c.Local == local || d.deliveredTo(c) == local) {
				return show(c), true
			}
		}
	}
	return control.Conn{}, false
}

// deliveredTo is the address that the service of an inbound connection sees as its own.
func (d *daemon) deliveredTo(c stack.Conn) netip.AddrPort {
	switch {
	case c.Direction != stack.Inbound:
		return netip.AddrPort{}
	case c.Local.Addr().Is4():
		return netip.AddrPortFrom(d.config.Host4, c.Local.Port())
	default:
		return netip.AddrPortFrom(d.config.Host6, c.Local.Port())
	}
}

func show(c stack.Conn) control.Conn {
	out := control.Conn{
		ID: c.ID, Direction: c.Direction.String(), Local: c.Local.String(), Remote: c.Remote.String(),
		State: c.State.String(), Encrypted: c.Encrypted, Resumed: c.Resumed,
		BytesSent: c.BytesSent, BytesReceived: c.BytesReceived,
	}
	if !c.Encrypted {
		out.Reason = text(string(c.Reason))
		return out
	}
	out.Role, out.TEP = text(c.Role.String()), text(c.TEP.String())
	if len(c.SessionID) > 0 { // the key exchange is done
		out.AEAD, out.SessionID = text(c.AEAD.String()), text(hex.EncodeToString(c.SessionID))
	}
	return out
}

func text(s string) *string { return &s }
