package daemon

import (
	"encoding/hex"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
	"github.com/tcpcrypt/tcpcrypt/stack"
)

// list is what control.PathConns answers.
func (d *daemon) list(closed bool) []control.Conn {
	select {
	case <-d.conns:
	default:
		return []control.Conn{} // not there yet
	}
	conns := []control.Conn{}
	if d.stack == nil {
		return conns
	}
	for _, c := range d.stack.Conns(closed) {
		conns = append(conns, conn(c))
	}
	return conns
}

func conn(c stack.Conn) control.Conn {
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
