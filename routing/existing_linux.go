package routing

import (
	"context"
	"log/slog"
	"net/netip"
)

// maxExisting bounds the connections that Existing lists.
const maxExisting = 1 << 16

// Existing lists the connections that are captured now but were not when they
// began, those of local sockets and those routed through this host. Ask between
// Apply and the first read from the device; see the package comment.
func (h *Host) Existing(ctx context.Context) ([]Flow, error) {
	own, err := h.ownAddresses()
	if err != nil {
		return nil, err
	}
	var found []Flow
	seen := map[tuple]bool{}
	missed := 0
	note := func(t tuple) {
		rule, policy, ok := h.table.Outbound(t.dst)
		switch {
		case !ok || policy == Bypass || seen[t] || own[t.dst.Addr()] || t.dst.Addr().IsLoopback():
		case len(found) == maxExisting:
			missed++
		default:
			seen[t] = true
			found = append(found, Flow{Src: t.src, Dst: t.dst, Rule: rule, Policy: policy})
		}
	}
	marked, err := markedFlows()
	if err != nil {
		return nil, err
	}
	d, err := openDiag()
	if err != nil {
		return nil, err
	}
	defer d.close()
	err = d.sockets(liveStates, func(s socket) {
		t := tuple{s.local, s.remote}
		// A socket at H is the stack's own doing, a marked one has come into the device
		// already and waits there.
		if a := s.local.Addr(); a != h.config.Host4 && a != h.config.Host6 && !marked[t] {
			note(t)
		}
	})
	if err != nil {
		return nil, err
	}
	err = flows(false, func(f ctFlow) {
		// As its packets leave this host: after NAT.
		t := tuple{f.reply.dst, f.reply.src}
		if !own[f.orig.src.Addr()] && f.mark&mark == 0 {
			note(t)
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
