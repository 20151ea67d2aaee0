package daemon

import (
	"net/netip"
	"time"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

// sessions is what control.PathSessions answers.
func (d *daemon) sessions() []control.Session {
	sessions := []control.Session{}
	for _, s := range d.cache.Sessions() {
		by := "peer"
		if s.Active {
			by = "us"
		}
		sessions = append(sessions, control.Session{
			ID: s.ID, Peer: s.Peer.String(), OpenedBy: by, Role: s.Role.String(), TEP: s.TEP.String(), AEAD: s.AEAD.String(),
			NextIndex: s.Index, Created: stamp(s.Created), Expires: stamp(s.Expires),
		})
	}
	return sessions
}

// remembered is what control.PathRemembered answers.
func (d *daemon) remembered() []control.Remembered {
	remembered := []control.Remembered{}
	if s := d.running(); s != nil {
		for _, r := range s.Remembered() {
			remembered = append(remembered, control.Remembered{
				Peer: r.Peer.String(), Reason: string(r.Reason), Since: stamp(r.Since), Until: stamp(r.Until),
			})
		}
	}
	return remembered
}

// flush is what control.PathFlush does.
func (d *daemon) flush(peer netip.Addr) control.Flushed {
	f := control.Flushed{Sessions: d.cache.Flush(peer)}
	if s := d.running(); s != nil {
		f.Remembered = s.Forget(peer)
	}
	return f
}

// stamp is a moment as JSON shows it.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }
