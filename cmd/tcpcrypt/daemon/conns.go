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
	s := d.running()
	if s == nil {
		return control.Conn{}, false
	}
	c, ok := s.Conn(local, remote)
	if !ok {
		return control.Conn{}, false
	}
	return show(c), true
}

// rekey is what control.PathRekey does.
func (d *daemon) rekey(ids []uint64) (r control.Rekeyed) {
	if s := d.running(); s != nil {
		r.Connections = s.Rekey(ids...)
	}
	return r
}

func show(c stack.Conn) control.Conn {
	out := control.Conn{
		ID: c.ID, Direction: c.Direction.String(), Local: c.Local.String(), Remote: c.Remote.String(),
		State: c.State.String(), Encrypted: c.Encrypted, Resumed: c.Resumed,
		BytesSent: c.BytesSent, BytesReceived: c.BytesReceived,
		GenerationSent: c.GenerationSent, GenerationReceived: c.GenerationReceived,
		PeerApplicationAware: c.PeerApplicationAware,
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
