package routing

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func afOf(version int) int {
	if version == 4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// netlinkRule is r as a message.
func (r fibRule) netlinkRule() *netlink.Rule {
	n := netlink.NewRule()
	n.Family, n.Priority, n.Protocol = afOf(r.version), r.priority, protocol
	n.IifName = r.iif
	n.Src, n.Dst = ipNet(r.from), ipNet(r.to)
	if r.tcp {
		n.IPProto = unix.IPPROTO_TCP
	}
	if r.sport != (PortRange{}) {
		n.Sport = netlink.NewRulePortRange(r.sport.First, r.sport.Last)
	}
	if r.dport != (PortRange{}) {
		n.Dport = netlink.NewRulePortRange(r.dport.First, r.dport.Last)
	}
	if r.marked {
		m := uint32(mark)
		n.Mark, n.Mask = mark, &m
	}
	switch r.action {
	case actionNop:
		n.Type = nl.FR_ACT_NOP
	case actionLookup:
		n.Table, n.Type = tableID, nl.FR_ACT_TO_TBL
	case actionGoto:
		n.Goto = r.target
	case actionUnreachable:
		n.Type = nl.FR_ACT_UNREACHABLE
	}
	return n
}

// ipNet is nil for no prefix and for one that covers everything: the kernel lists
// such a selector as absent.
func ipNet(p netip.Prefix) *net.IPNet {
	if !p.IsValid() || p.Bits() == 0 {
		return nil
	}
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (k *kernel) addRule(r fibRule) error { return k.nl.RuleAdd(r.netlinkRule()) }

// ruleChanges add the rules of p to the slot at base, behind a closed gate: whatever
// part of the rules stands in between, nothing is captured by it.
//
// A single rule is not undone: the kernel deletes the first that has what the request
// names, and one without ports names less than its neighbours. All together are.
func (k *kernel) ruleChanges(p program, base int) []change {
	clear := func() error { return k.clearSlot(base) }
	changes := []change{{what: fmt.Sprintf("use the rule priorities %d to %d", base, base+slotSize-1), do: clear, undo: clear}}
	add := func(r fibRule) {
		changes = append(changes, change{
			what: fmt.Sprintf("add the IPv%d routing rule %q", r.version, r),
			do:   func() error { return k.addRule(r) },
		})
	}
	for _, r := range p.rules {
		if r.priority == base+landPriority {
			add(r)
			add(gateOf(r.version, base))
		}
	}
	for _, r := range p.rules {
		if r.priority != base+landPriority {
			add(r)
		}
	}
	return changes
}

func gateOf(version, base int) fibRule {
	return fibRule{version: version, priority: base + gatePriority, action: actionGoto, target: base + landPriority}
}

// openGate is the step that switches capture on, all rules of an IP version at once.
func (k *kernel) openGate(version, base int) change {
	gate := gateOf(version, base)
	return change{
		what: fmt.Sprintf("switch on capture of IPv%d", version),
		do: func() error {
			if err := k.nl.RuleDel(gate.netlinkRule()); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
			return nil
		},
		undo: func() error {
			if err := k.addRule(gate); err != nil && !errors.Is(err, unix.EEXIST) {
				return err
			}
			return nil
		},
	}
}

// rules lists all FIB rules of both families.
func (k *kernel) rules() ([]netlink.Rule, error) {
	var all []netlink.Rule
	for _, v := range k.versions() {
		rs, err := retryDump(func() ([]netlink.Rule, error) { return k.nl.RuleList(afOf(v)) })
		if err != nil {
			return nil, &Error{What: fmt.Sprintf("list the IPv%d routing rules", v), Err: err, Fix: fix(err)}
		}
		all = append(all, rs...)
	}
	return all, nil
}

// retryDump repeats a netlink dump that a concurrent change has interrupted.
func retryDump[T any](dump func() ([]T, error)) (r []T, err error) {
	for range 10 {
		if r, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return r, err
		}
	}
	return r, err
}

func inSlot(priority, base int) bool { return base <= priority && priority < base+slotSize }

// ours reports whether n is a rule that this program has made.
func ours(n netlink.Rule) bool {
	return n.Protocol == protocol && (inSlot(n.Priority, slot0) || inSlot(n.Priority, slot1))
}

// clearSlot removes all our rules from a slot: first what captures, last the rule
// where they land, and again until none is left, since a request may have deleted
// another rule than it meant.
func (k *kernel) clearSlot(base int) error {
	for {
		all, err := k.rules()
		if err != nil {
			return err
		}
		var left []netlink.Rule
		for _, r := range all {
			if ours(r) && inSlot(r.Priority, base) {
				left = append(left, r)
			}
		}
		if len(left) == 0 {
			return nil
		}
		slices.SortStableFunc(left, func(a, b netlink.Rule) int { return cmp.Compare(removalOrder(a, base), removalOrder(b, base)) })
		deleted := 0
		for _, r := range left {
			switch err := k.nl.RuleDel(&r); {
			case err == nil:
				deleted++
			case !errors.Is(err, unix.ENOENT):
				return err
			}
		}
		if deleted == 0 {
			return fmt.Errorf("%d routing rules do not go away", len(left))
		}
	}
}

func removalOrder(r netlink.Rule, base int) int {
	switch offset := r.Priority - base; {
	case offset >= capturePriority && offset < landPriority:
		return 0
	case offset < landPriority && offset != gatePriority:
		return 1
	}
	return 2
}
