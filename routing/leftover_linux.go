package routing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// leftovers are what an instance that was killed has left behind.
type leftovers struct {
	rules [2]bool      // by slot
	gate  [2]bool      // the slot is switched off
	link  []netip.Addr // its H
	guard bool
}

var slots = [2]int{slot0, slot1}

func (k *kernel) leftovers() (*leftovers, error) {
	rules, err := k.rules()
	if err != nil {
		return nil, err
	}
	l := &leftovers{}
	for _, r := range rules {
		for i, base := range slots {
			if ours(r) && inSlot(r.Priority, base) {
				l.rules[i] = true
				if a, ok := netip.AddrFromSlice(srcOf(r)); ok {
					l.link = append(l.link, a)
				}
				l.gate[i] = l.gate[i] || r.Priority == base+gatePriority
			}
		}
	}
	if _, l.guard, err = findTable(guardTable); err != nil {
		return nil, &Error{What: "look for nftables tables", Err: err, Fix: fix(err)}
	}
	return l, nil
}

func srcOf(r netlink.Rule) net.IP {
	if r.Src == nil {
		return nil
	}
	return r.Src.IP
}

func (l *leftovers) any() bool { return l.guard || l.rules[0] || l.rules[1] }

// freeSlot is the slot for new rules. If both hold some, the instance was killed while
// it replaced one by the other; the one whose gate is closed is then not in use.
func (l *leftovers) freeSlot() int {
	if !l.rules[0] || l.rules[1] && l.gate[0] {
		return slot0
	}
	return slot1
}

// repair resets the connections that the dead instance had captured and restores
// sysctls. It leaves the rules, so that what is closed stays closed, and the guard,
// so that no tail of a connection leaves in clear.
func (l *leftovers) repair(ctx context.Context, log *slog.Logger) error {
	if !l.any() {
		return nil
	}
	log.Warn("an earlier instance was killed, taking over")
	n, err := destroyCaptured(ctx, l.link...)
	if err != nil {
		return &Error{What: "reset connections of an earlier instance", Err: err, Fix: fix(err)}
	}
	if n > 0 {
		log.Info("connections of an earlier instance reset", slog.Int("sockets", n))
	}
	if !l.guard {
		return nil
	}
	g, err := newGuard()
	if err != nil {
		return err
	}
	notes, err := g.notes()
	if err == nil {
		err = restore(notes)
	}
	if err != nil {
		return &Error{What: "restore sysctls that an earlier instance has changed", Err: err,
			Fix: fmt.Sprintf("look at chain %s of table inet %s and restore them by hand, then delete the table", notesChain, guardTable)}
	}
	return nil
}

// retire removes the rules of the slot that is not in use.
func (k *kernel) retire(used int) error { return k.clearSlot(slot0 + slot1 - used) }

// Clean removes what an instance that was killed left in this network namespace,
// after resetting the connections it had captured. With nothing to remove it does
// nothing; with a live instance it returns ErrRunning.
func Clean(ctx context.Context, log *slog.Logger) error {
	k, err := openKernel()
	if err != nil {
		return err
	}
	defer k.close()
	if err := k.checkAlone(); err != nil {
		return err
	}
	l, err := k.leftovers()
	if err != nil || !l.any() {
		return err
	}
	if err := l.repair(ctx, log); err != nil {
		return err
	}
	if err := errors.Join(k.clearSlot(slot0), k.clearSlot(slot1)); err != nil {
		return &Error{What: "remove routing rules of an earlier instance", Err: err, Fix: fix(err)}
	}
	if err := forgetFlows(l.link...); err != nil {
		return err
	}
	g, err := newGuard()
	if err == nil {
		err = g.remove()
	}
	if err != nil {
		return &Error{What: fmt.Sprintf("remove the nftables table %s", guardTable), Err: err, Fix: fix(err)}
	}
	return nil
}
