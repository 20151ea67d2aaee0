package routing

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Our FIB rules live in one of two slots of priorities, behind the local table (0) and
// before everything that a VPN or the distribution adds (5210, 32764, 32766). A start
// that finds leftovers in one slot takes the other and removes the first when its own
// rules stand, so nothing that was closed opens in between.
const (
	slot0    = 2000
	slot1    = slot0 + slotSize
	slotSize = 500

	// Offsets in a slot, in the order in which the kernel tries the rules.
	loopGuardPriority = 0            // what comes from the device is never captured again
	fromHostPriority  = 1            // from H there is no other way than the device
	sourcePriority    = 2            // answers of Require services
	markPriority      = 3            // packets that carry mark go on as without us
	gatePriority      = 9            // while it stands, the rules behind it are off
	capturePriority   = 10           // outbound rule i has capturePriority+i
	landPriority      = slotSize - 1 // where a goto lands that leaves our rules
)

const (
	// tableID is our routing table: a default route into the device, nothing else. It
	// goes with the device.
	tableID = 29795
	// protocol is in every rule and route of ours (RTA_PROTOCOL, FRA_PROTOCOL). It is the
	// number of the TCP option ENO; no routing daemon has it.
	protocol = 69
	// mark is a bit. On a packet it means: not captured. On a connection: its first
	// packet went into the device.
	mark = 0x08000000
	// oldMark is a bit on a connection that was there before the capture: not captured.
	oldMark = 0x04000000
)

// A fibRule is one rule as `ip rule` knows it. The zero value of a field does not
// select.
type fibRule struct {
	version  int // 4 or 6
	priority int
	iif      string
	from, to netip.Prefix
	tcp      bool // the port ranges need it
	sport    PortRange
	dport    PortRange
	marked   bool
	action   action
	target   int // of actionGoto: a priority
}

type action uint8

const (
	actionNop action = iota
	actionLookup
	actionGoto
	actionUnreachable
)

// String is the rule as `ip rule` lists it.
func (r fibRule) String() string {
	var b strings.Builder
	from := "all"
	if r.from.IsValid() {
		from = shortPrefix(r.from)
	}
	fmt.Fprintf(&b, "%d: from %s", r.priority, from)
	if r.to.IsValid() {
		fmt.Fprintf(&b, " to %s", shortPrefix(r.to))
	}
	if r.marked {
		fmt.Fprintf(&b, " fwmark %#x/%#x", mark, mark)
	}
	if r.iif != "" {
		fmt.Fprintf(&b, " iif %s", r.iif)
	}
	if r.tcp {
		b.WriteString(" ipproto tcp")
	}
	if r.sport != (PortRange{}) {
		fmt.Fprintf(&b, " sport %s", r.sport)
	}
	if r.dport != (PortRange{}) {
		fmt.Fprintf(&b, " dport %s", r.dport)
	}
	switch r.action {
	case actionNop:
		b.WriteString(" nop")
	case actionLookup:
		fmt.Fprintf(&b, " lookup %d", tableID)
	case actionGoto:
		fmt.Fprintf(&b, " goto %d", r.target)
	case actionUnreachable:
		b.WriteString(" unreachable")
	}
	return b.String()
}

func shortPrefix(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// A program is what a Config means to the kernel.
type program struct {
	rules         []fibRule   // in the order in which the kernel tries them, IPv4 first
	inbound       []PortRange // to be redirected to S
	inboundClosed []PortRange // those of them under Require
}

// version gives the rules of one IP version.
func (p program) version(v int) []fibRule {
	return slices.DeleteFunc(slices.Clone(p.rules), func(r fibRule) bool { return r.version != v })
}

// compile turns c into the FIB rules of the slot that begins at base.
//
// Each captured selector becomes a pair: look in our table, and, should that have no
// answer because the device is gone, under Require unreachable, under Opportunistic
// on to the rest of the host's rules. The second half is a rule and not a route of
// our table, because an IPv6 socket that is bound to a device skips routes through
// other devices, unreachable ones too, and would go on to the main table.
func compile(c Config, base int) program {
	var p program
	p.inbound, p.inboundClosed = inboundPorts(c.Inbound)
	for _, v := range []int{4, 6} {
		if f := c.family(v); f.on() {
			p.rules = append(p.rules, compileFamily(c, v, f, base, p.inboundClosed)...)
		}
	}
	return p
}

func compileFamily(c Config, v int, f family, base int, closed []PortRange) []fibRule {
	land := base + landPriority
	k := compiler{version: v, land: land}
	k.add(fibRule{priority: base + loopGuardPriority, iif: c.Interface, action: actionGoto, target: land})
	k.closed(fibRule{priority: base + fromHostPriority, from: single(f.host)})
	k.answers(closed, base+sourcePriority, base+markPriority)
	k.add(fibRule{priority: base + markPriority, marked: true, action: actionGoto, target: land})
	for i, o := range c.Outbound {
		k.outbound(o, base+capturePriority+i, c.Outbound[i+1:])
	}
	k.add(fibRule{priority: land, action: actionNop})
	k.resolveNext()
	return k.rules
}

type compiler struct {
	version, land int
	rules         []fibRule
}

// next is the target of a goto to whatever rule has the next higher priority.
const next = -1

func (k *compiler) add(r fibRule) {
	r.version = k.version
	if !slices.Contains(k.rules, r) { // the same prefix twice in one rule: the kernel would refuse it
		k.rules = append(k.rules, r)
	}
}

// closed adds the pair that leads into the device or nowhere.
func (k *compiler) closed(r fibRule) {
	r.action = actionLookup
	k.add(r)
	r.action = actionUnreachable
	k.add(r)
}

// open adds the pair that leads into the device or, if it is gone, past our rules.
func (k *compiler) open(r fibRule, later []Outbound) {
	r.action = actionLookup
	k.add(r)
	if capturedBy(r, later) {
		r.action, r.target = actionGoto, k.land
		k.add(r)
	}
}

// answers closes the way for what local sockets send from ports, so that a service
// under Require cannot answer a client in clear while we are not there.
func (k *compiler) answers(ports []PortRange, priority, after int) {
	local := fibRule{priority: priority, iif: "lo", tcp: true} // iif lo: sent by this host
	for _, r := range ports {
		if r.Last < allPorts.Last {
			local.sport = r
			k.closed(local)
		}
	}
	if below, ok := tail(ports); ok {
		local.sport = below
		if below.valid() {
			skip := local
			skip.action, skip.target = actionGoto, after
			k.add(skip)
		}
		local.sport = PortRange{}
		k.closed(local)
	}
}

func (k *compiler) outbound(o Outbound, priority int, later []Outbound) {
	to := k.mine(o.To)
	if len(to) == 0 {
		return
	}
	emit := func(r fibRule) {
		switch o.Policy {
		case Require:
			k.closed(r)
		case Opportunistic:
			k.open(r, later)
		default:
			r.action, r.target = actionGoto, k.land
			k.add(r)
		}
	}
	skip := func(r fibRule) {
		r.priority, r.tcp, r.action, r.target = priority, true, actionGoto, next
		k.add(r)
	}
	for _, e := range k.mine(o.Except) {
		if slices.ContainsFunc(to, e.Overlaps) {
			skip(fibRule{to: e})
		}
	}
	ports := merge(o.ports())
	for _, p := range to {
		for _, r := range ports {
			if r.Last < allPorts.Last {
				emit(fibRule{priority: priority, to: p, tcp: true, dport: r})
			}
		}
	}
	if below, ok := tail(ports); ok {
		if below.valid() {
			skip(fibRule{dport: below})
		}
		for _, p := range to {
			emit(fibRule{priority: priority, to: p, tcp: true})
		}
	}
}

// tail is about the one of ports, sorted and merged, that ends at 65535. The kernel
// takes no range with that end, so such a range is written as what is left after
// skipping the ports below it.
func tail(ports []PortRange) (below PortRange, ok bool) {
	if len(ports) == 0 {
		return PortRange{}, false
	}
	last := ports[len(ports)-1]
	return PortRange{1, last.First - 1}, last.Last == allPorts.Last
}

func (k *compiler) mine(ps []netip.Prefix) (mine []netip.Prefix) {
	for _, p := range ps {
		if version(p.Addr()) == k.version {
			mine = append(mine, p)
		}
	}
	return mine
}

// resolveNext replaces the target next, now that it is known which priorities exist.
func (k *compiler) resolveNext() {
	for i := range k.rules {
		if r := &k.rules[i]; r.action == actionGoto && r.target == next {
			after := slices.IndexFunc(k.rules[i:], func(s fibRule) bool { return s.priority > r.priority })
			r.target = k.rules[i+after].priority // the landing rule at least
		}
	}
}

// capturedBy reports whether a rule of later captures some of what r matches.
func capturedBy(r fibRule, later []Outbound) bool {
	dport := r.dport
	if dport == (PortRange{}) {
		dport = allPorts
	}
	return slices.ContainsFunc(later, func(o Outbound) bool {
		return o.Policy != Bypass && slices.ContainsFunc(o.To, r.to.Overlaps) &&
			slices.ContainsFunc(o.ports(), func(p PortRange) bool { return p.First <= dport.Last && dport.First <= p.Last })
	})
}

// inboundPorts resolves first match wins for ports: those captured, and those of them
// under Require, sorted and merged.
func inboundPorts(rules []Inbound) (captured, closed []PortRange) {
	var seen []PortRange
	for _, in := range rules {
		fresh := subtract(in.Ports, seen)
		seen = merge(slices.Concat(seen, fresh))
		if in.Policy != Bypass {
			captured = append(captured, fresh...)
		}
		if in.Policy == Require {
			closed = append(closed, fresh...)
		}
	}
	return merge(captured), merge(closed)
}

// merge sorts ranges and joins those that overlap or touch.
func merge(rs []PortRange) []PortRange {
	rs = slices.SortedFunc(slices.Values(rs), func(a, b PortRange) int { return cmp.Compare(a.First, b.First) })
	var out []PortRange
	for _, r := range rs {
		if n := len(out); n > 0 && uint32(r.First) <= uint32(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
		} else {
			out = append(out, r)
		}
	}
	return out
}

// subtract gives what of rs is not in without.
func subtract(rs, without []PortRange) []PortRange {
	rs = merge(rs)
	for _, w := range without {
		var left []PortRange
		for _, r := range rs {
			if r.First < w.First {
				left = append(left, PortRange{r.First, min(r.Last, w.First-1)})
			}
			if r.Last > w.Last {
				left = append(left, PortRange{max(r.First, w.Last+1), r.Last})
			}
		}
		rs = left
	}
	return rs
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
