package routing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/mdlayher/netlink"
)

// A Host is a network namespace with a Config applied.
type Host struct {
	config  Config
	table   *Table
	log     *slog.Logger
	kernel  *kernel
	device  int // its index
	nat     *nat
	watcher *watcher
	diag    *diag         // these two are for questions per connection
	ct      *netlink.Conn // both take one at a time

	mu     sync.Mutex // guards what follows
	tx     tx
	closed bool
}

// Apply makes the kernel capture what c says into the device named c.Interface,
// which must exist. Leftovers of a killed instance are taken over. On failure
// everything is undone and the error, an *Error, names the step.
func Apply(ctx context.Context, c Config, log *slog.Logger) (*Host, error) {
	return apply(ctx, c, log, trial{})
}

// A trial makes Apply meet what a test cannot bring about otherwise.
type trial struct {
	fail      func(what string) error // makes a step fail
	oneSwitch bool                    // IPv6 forwarding has no switch per device
	host      **Host                  // where to put the Host, which a killed start does not return
}

func apply(ctx context.Context, c Config, log *slog.Logger, try trial) (*Host, error) {
	table, err := NewTable(c)
	if err != nil {
		return nil, err
	}
	k, err := openKernel()
	if err != nil {
		return nil, err
	}
	h := &Host{config: c, table: table, log: log, kernel: k, tx: tx{fix: fix, fail: try.fail}}
	if try.host != nil {
		*try.host = h
	}
	if h.diag, err = openDiag(); err == nil {
		h.ct, err = dialConntrack()
	}
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	if err := h.start(ctx, try); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// start is the order in which things must come to stand. What may not be there
// without something else comes after it, and so goes before it:
//
//	the owned table          it says that we are here
//	the guard                notes down the sysctls that follow
//	the link                 addresses, route to S, our routing table
//	filters, the way out     before anything is forwarded
//	forwarding
//	rules                    behind a gate, which is opened last
//	the way in
//	leftovers of others      when nothing can fail any more
func (h *Host) start(ctx context.Context, try trial) error {
	k, c := h.kernel, h.config
	if err := k.checkApply(c); err != nil {
		return err
	}
	err := h.step(ctx, change{
		what: fmt.Sprintf("create the nftables table %s", ownedTable),
		do:   func() (err error) { h.nat, err = claimNAT(); return err },
		undo: func() error { return h.nat.release() },
	})
	if err != nil {
		return err
	}
	n := h.nat
	left, err := k.leftovers()
	if err != nil {
		return err
	}
	if err := left.repair(ctx, h.log); err != nil {
		return err
	}
	g, err := newGuard()
	if err != nil {
		return err
	}
	l, err := k.link(c.Interface)
	if err != nil {
		return err
	}
	h.device = l.Attrs().Index
	base := left.freeSlot()
	p := compile(c, base)
	sys, fwdSys := &sysctls{note: g.note}, &sysctls{note: g.note}
	fwd := newForwarding(c, fwdSys, n, try.oneSwitch)

	steps := []change{{
		what: "track connections",
		do:   func() error { return nil },
		undo: h.forgetFlows,
	}, {
		what: fmt.Sprintf("create the nftables table %s", guardTable),
		do:   func() error { return g.install(c, p) },
		undo: func() error {
			if left.guard { // it was there when we came, and so were the rules that need it
				return g.install(c, p)
			}
			return g.remove()
		},
	}}
	steps = append(steps, change{
		what: fmt.Sprintf("set the sysctls of %s", c.Interface),
		do: func() error {
			for _, s := range fwd.deviceSettings() {
				if err := s.path.write(s.new); err != nil {
					return err
				}
			}
			return nil
		},
	})
	steps = append(steps, k.linkChanges(l, c)...)
	steps = append(steps, change{
		what: "let answers to others pass",
		do:   func() error { return undoOnError(sys, letAnswersPass(c, k, sys)) },
		undo: sys.restore,
	}, change{
		what: "add filters and source NAT",
		do: func() error {
			perDevice, all, err := fwd.closing()
			if err != nil {
				return err
			}
			return n.addFilters(c, perDevice, all)
		},
	}, change{
		what: "switch on forwarding",
		do: func() error {
			links, err := k.nl.LinkList()
			if err == nil {
				err = fwd.start(links)
			}
			return undoOnError(fwdSys, err)
		},
		undo: fwdSys.restore,
	}, change{
		what: "watch the devices",
		do:   func() (err error) { h.watcher, err = startWatcher(k, c.Interface, fwd, h.log); return err },
		undo: func() error { return h.watcher.close() },
	})
	steps = append(steps, k.ruleChanges(p, base)...)
	steps = append(steps, change{what: "let connections pass that are older", do: h.markOld})
	for _, v := range []int{4, 6} {
		if c.family(v).on() {
			steps = append(steps, k.openGate(v, base))
		}
	}
	if len(p.inbound) > 0 {
		steps = append(steps, change{
			what: "redirect inbound connections",
			do:   func() error { return n.addInbound(c, p.inbound) },
			undo: n.removeInbound,
		})
	}
	for _, s := range steps {
		if err := h.step(ctx, s); err != nil {
			return err
		}
	}
	left.guard = false // from here on it is ours to remove
	if err := k.retire(base); err != nil {
		h.log.Warn("leftover rules remain", slog.Any("err", err))
	}
	return nil
}

func (h *Host) step(ctx context.Context, c change) error {
	if err := ctx.Err(); err != nil {
		return &Error{What: c.what, Err: context.Cause(ctx)}
	}
	h.log.Debug("apply", slog.String("step", c.what))
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tx.apply(c)
}

// Close undoes everything, newest first, and returns when the goroutines of h have
// ended. It goes on after an error and returns them joined. It may be called twice.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	err := h.tx.rollback()
	h.kernel.close()
	if h.diag != nil {
		h.diag.close()
	}
	if h.ct != nil {
		err = errors.Join(err, h.ct.Close())
	}
	return err
}

// undoOnError restores what a failed step has set.
func undoOnError(s *sysctls, err error) error {
	if err != nil {
		return errors.Join(err, s.restore())
	}
	return nil
}
