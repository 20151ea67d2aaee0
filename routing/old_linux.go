package routing

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// maxExisting bounds the connections that are looked after because they are older
// than the capture.
const maxExisting = 1 << 16

// existing calls each for all connections that the rules capture and that did not
// come into the device when they began: those that conntrack knows (flow is set),
// and those of local sockets. A connection may come twice.
func (h *Host) existing(each func(f Flow, flow *ctFlow)) error {
	own, err := h.ownAddresses()
	if err != nil {
		return err
	}
	visit := func(src, dst netip.AddrPort, flow *ctFlow) {
		if own[dst.Addr()] || dst.Addr().IsLoopback() || h.onLink(src.Addr()) {
			return
		}
		if rule, policy, ok := h.table.Outbound(dst); ok && policy != Bypass {
			each(Flow{Src: src, Dst: dst, Rule: rule, Policy: policy}, flow)
		}
	}
	captured := map[tuple]bool{}
	err = flows(0, func(f ctFlow) {
		if f.mark&mark != 0 {
			captured[f.orig] = true
			return
		}
		visit(f.reply.dst, f.reply.src, &f) // as its packets leave this host, after NAT
	})
	if err != nil {
		return err
	}
	d, err := openDiag()
	if err != nil {
		return err
	}
	defer d.close()
	return d.sockets(liveStates, func(s socket) {
		if !captured[tuple{s.local, s.remote}] {
			visit(s.local, s.remote, nil)
		}
	})
}

func (h *Host) onLink(a netip.Addr) bool {
	c := h.config
	return a == c.Host4 || a == c.Stack4 || a == c.Host6 || a == c.Stack6
}

func (h *Host) ownAddresses() (map[netip.Addr]bool, error) {
	own := map[netip.Addr]bool{}
	for _, v := range h.kernel.versions() {
		addrs, err := h.kernel.addresses(v)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			own[a.Addr()] = true
		}
	}
	return own, nil
}

// markOld tells conntrack which connections are older than the capture, so that they
// go on past it: those that policy may leave in clear. Their packets then do not
// come into the device at all, which matters where the host translates addresses: what
// is written back from the device would be another connection to it.
func (h *Host) markOld() error {
	set := map[tuple]uint32{}
	missed := 0
	err := h.existing(func(f Flow, flow *ctFlow) {
		if flow == nil {
			return
		}
		want := uint32(0)
		if f.Policy == Opportunistic {
			want = oldMark
		}
		switch {
		case flow.mark&oldMark == want:
		case len(set) == maxExisting:
			missed++
		default:
			set[flow.orig] = want
		}
	})
	if err != nil {
		return err
	}
	if missed > 0 {
		h.log.Warn("too many connections are older than the capture, some will be reset", slog.Int("connections", missed))
	}
	return setMarks(set, oldMark)
}

// Existing lists the connections that are captured now but were not when they
// began, those of local sockets and those routed through this host. Ask between
// Apply and the first read from the device; see the package comment. Of many
// thousands, the rest is left out, and logged.
func (h *Host) Existing(ctx context.Context) ([]Flow, error) {
	if err := h.markOld(); err != nil { // those from between the first time and the opening of the gate
		return nil, err
	}
	var found []Flow
	seen := map[tuple]bool{}
	missed := 0
	err := h.existing(func(f Flow, _ *ctFlow) {
		switch t := (tuple{f.Src, f.Dst}); {
		case seen[t]:
		case len(found) == maxExisting:
			missed++
		default:
			seen[t] = true
			found = append(found, f)
		}
	})
	if err != nil {
		return nil, err
	}
	if missed > 0 {
		h.log.Warn("too many connections are older than the capture, some will be reset", slog.Int("connections", missed))
	}
	return found, ctx.Err()
}

func (h *Host) forgetFlows() error {
	c := h.config
	return forgetFlows(c.Host4, c.Stack4, c.Host6, c.Stack6)
}

// forgetFlows takes our marks off the connections that have any, and makes conntrack
// forget those of the link, which lead nowhere now.
func forgetFlows(link ...netip.Addr) error {
	clear := map[tuple]uint32{}
	var dead []tuple
	err := flows(0, func(f ctFlow) {
		switch {
		case slices.Contains(link, f.orig.src.Addr()) || slices.Contains(link, f.reply.src.Addr()):
			dead = append(dead, f.orig)
		case f.mark&(mark|oldMark) != 0:
			clear[f.orig] = 0
		}
	})
	if err != nil {
		return err
	}
	return errors.Join(deleteFlows(dead), setMarks(clear, mark|oldMark))
}

// setMarks changes the bits in mask of the marks of connections. One that has ended
// meanwhile is as good.
func setMarks(marks map[tuple]uint32, mask uint32) error {
	return ctRequests(ctNew, len(marks), func(send func(tuple, ...netlink.Attribute) error) error {
		for t, m := range marks {
			err := send(t,
				netlink.Attribute{Type: ctaMark, Data: binary.BigEndian.AppendUint32(nil, m)},
				netlink.Attribute{Type: ctaMarkMask, Data: binary.BigEndian.AppendUint32(nil, mask)})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func deleteFlows(ts []tuple) error {
	return ctRequests(ctDelete, len(ts), func(send func(tuple, ...netlink.Attribute) error) error {
		for _, t := range ts {
			if err := send(t); err != nil {
				return err
			}
		}
		return nil
	})
}

// ctRequests opens a connection to conntrack for n requests about single entries.
func ctRequests(kind netlink.HeaderType, n int, do func(send func(tuple, ...netlink.Attribute) error) error) error {
	if n == 0 {
		return nil
	}
	conn, err := dialConntrack()
	if err != nil {
		return err
	}
	send := func(t tuple, more ...netlink.Attribute) error {
		ae := netlink.NewAttributeEncoder()
		ae.ByteOrder = binary.BigEndian
		t.encode(ae, ctaTupleOrig)
		b, err := ae.Encode()
		if err != nil {
			return err
		}
		rest, err := netlink.MarshalAttributes(more)
		if err != nil {
			return err
		}
		_, err = conn.Execute(netlink.Message{
			Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Acknowledge},
			Data:   append(append(nfgenmsg(version(t.src.Addr())), b...), rest...),
		})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return &Error{What: "change an entry of conntrack", Err: err, Fix: fix(err)}
		}
		return nil
	}
	return errors.Join(do(send), conn.Close())
}
