package routing

import (
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// guardTable is our nftables table without owner. It outlives a crash, and then sees
// to it that what went through the device goes nowhere else.
const guardTable = "tcpcrypt_guard"

// notesChain is in no hook. Its rules do nothing; their comments are the sysctls that
// were changed, so that a later start can restore them without a file.
const notesChain = "sysctls"

var guardTableRef = nftables.Table{Name: guardTable, Family: nftables.TableFamilyINet}

// guardSets are sets of ports, nil if empty.
type guardSets struct {
	captured *nftables.Set // of far ends, captured
	closed   *nftables.Set // those of them under Require
	answers  *nftables.Set // of services under Require
}

// guardChains mark each connection whose first segment goes into the device, and
// refuse a segment of such a connection that would go anywhere else. Of the same
// kind is what comes for S when there is no S any more.
//
// Then there is the other direction: answers of connections that others have opened
// to this host, or through it. They match an outbound rule when the client's port
// does, but they were not captured on the way in and must not be on the way back.
// Packets that arrive are marked, and sockets inherit the mark (tcp_fwmark_accept), so
// that their answers are never captured, not even when there is nothing to capture
// them and under Require they would have no way at all. Sockets that are older are
// seen to by the route chain. With strict rp_filter and src_valid_mark the same mark
// lets answers to what is not captured in.
func guardChains(c Config, p program, sets guardSets) []nftChain {
	opened := nftChain{name: "opened", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPostrouting, priority: mangle}
	opened.rules = []nftRule{rule("captured", oif(c.Interface), firstSYN(), setCtMark())}

	output := nftChain{name: "output", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, priority: filter}
	// The reset itself comes by here, too: through lo to a local program, and to a routed
	// machine in the reply direction.
	output.rules = []nftRule{rule("captured: the device or nowhere", notOif(c.Interface, "lo"), ctOriginal(), ctMarked(mark), rejectReset())}

	forward := nftChain{name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, priority: filter}
	forward.rules = []nftRule{rule("captured: the device or nowhere", notIif(c.Interface), notOif(c.Interface), ctMarked(mark), rejectReset())}

	passing := nftChain{name: "passing", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: mangle}
	passing.rules = []nftRule{rule("older than the capture", notIif(c.Interface, "lo"), ctMarked(oldMark), setMark())}

	answers := nftChain{name: "answers", kind: nftables.ChainTypeRoute, hook: nftables.ChainHookOutput, priority: mangle}
	answers.rules = []nftRule{rule("older than the capture", oif(c.Interface), ctMarked(oldMark), setMark())}
	back := []term{oif(c.Interface), ctReply()}
	if sets.answers != nil {
		back = append(back, sportNotIn(sets.answers))
	} else {
		back = append(back, tcp())
	}
	for _, v := range []int{4, 6} {
		if f := c.family(v); f.on() {
			answers.rules = append(answers.rules, rule("opened by the other end",
				append(back[:len(back):len(back)], address(f.host, true, expr.CmpOpNeq), setMark())...))
			forward.rules = append(forward.rules, rule("nobody there", notOif(c.Interface), daddr(f.stack), rejectReset()))
		}
	}
	chains := []nftChain{opened, output, forward, passing, answers}
	if sets.captured != nil {
		arriving := nftChain{name: "arriving", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: mangle}
		arriving.rules = []nftRule{rule("not captured on the way back", notIif(c.Interface, "lo"), sportIn(sets.captured), toLocal(), setMark())}
		chains = append(chains, arriving)
		routed := nftChain{name: "routed_answers", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: mangle}
		routed.rules = []nftRule{rule("opened by the other end", notIif(c.Interface, "lo"), ctReply(), dportIn(sets.captured), setMark())}
		chains = append(chains, routed)
	}
	chains = append(chains, closedChains(c, p, sets)...)
	return append(chains, nftChain{name: notesChain})
}

// closedChains are the FIB rules of Require once more, for packets that do not go into
// the device. The rules alone do not hold everything: an IPv4 socket that is bound to
// a device takes an unreachable destination for one on the link of that device, and
// other tools flush rules.
//
// There is a chain per priority; returning from it is going on to the next. Packets
// whose port no rule closes do not get as far.
func closedChains(c Config, p program, sets guardSets) []nftChain {
	output := nftChain{name: "closed_output", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, priority: filter}
	forward := nftChain{name: "closed_forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, priority: filter}
	output.rules = []nftRule{rule("", oif(c.Interface), accept()), rule("", oif("lo"), accept())}
	forward.rules = []nftRule{rule("", oif(c.Interface), accept()), rule("", iif(c.Interface), accept())}
	var chains []nftChain
	for _, v := range []int{4, 6} {
		mine := p.version(v)
		// What comes after the last rule that closes anything does not matter.
		for len(mine) > 0 && mine[len(mine)-1].action != actionUnreachable {
			mine = mine[:len(mine)-1]
		}
		for priority, rules := range byPriority(mine) {
			chain := nftChain{name: fmt.Sprintf("closed%d_%d", v, priority%slotSize)}
			for _, r := range rules {
				if t, ok := closedTerms(r); ok {
					chain.rules = append(chain.rules, rule("", t...))
				}
			}
			if len(chain.rules) == 0 {
				continue
			}
			chains = append(chains, chain)
			enter := []term{ipVersion(v)}
			switch offset := priority % slotSize; {
			case offset == sourcePriority:
				enter = append(enter, sportIn(sets.answers))
			case offset >= capturePriority:
				enter = append(enter, dportIn(sets.closed))
			default:
				enter = append(enter, tcp())
			}
			in := rule("", append(enter, jump(chain.name))...)
			output.rules = append(output.rules, in)
			if priority%slotSize >= markPriority { // the others are about what this host sends
				forward.rules = append(forward.rules, in)
			}
		}
	}
	return append(chains, output, forward)
}

// byPriority yields the runs of rules with the same priority, in order.
func byPriority(rules []fibRule) iter.Seq2[int, []fibRule] {
	return func(yield func(int, []fibRule) bool) {
		for len(rules) > 0 {
			n := 1
			for n < len(rules) && rules[n].priority == rules[0].priority {
				n++
			}
			if !yield(rules[0].priority, rules[:n]) {
				return
			}
			rules = rules[n:]
		}
	}
}

// closedTerms translates one FIB rule. A lookup is not translated: that it was in vain
// is why the packet is here. Neither is the loop guard.
func closedTerms(r fibRule) (terms []term, ok bool) {
	if r.action == actionLookup || r.action == actionNop || r.iif != "" && r.iif != "lo" {
		return nil, false
	}
	if r.marked {
		terms = append(terms, marked())
	}
	if r.from.IsValid() {
		terms = append(terms, inPrefix(r.from, true))
	}
	if r.to.IsValid() && r.to.Bits() > 0 {
		terms = append(terms, inPrefix(r.to, false))
	}
	if r.sport.valid() {
		terms = append(terms, inRange(r.sport, true))
	}
	if r.dport.valid() {
		terms = append(terms, inRange(r.dport, false))
	}
	switch {
	case r.action == actionUnreachable && r.to.IsValid():
		return append(terms, rejectProhibited()), true
	case r.action == actionUnreachable:
		return append(terms, drop()), true // an answer: its reader is not to be told
	case r.target%slotSize == landPriority:
		return append(terms, accept()), true
	}
	return append(terms, goBack()), true
}

// firstClientPort is the lowest port that clients are given when they do not ask for
// one, on any system.
const firstClientPort = 1024

// coversClients reports whether an outbound rule may match answers to clients.
func coversClients(c Config) bool {
	return slices.ContainsFunc(outboundPorts(c, Opportunistic, Require), func(r PortRange) bool { return r.Last >= firstClientPort })
}

// outboundPorts are all ports of outbound rules with these policies.
func outboundPorts(c Config, policies ...Policy) []PortRange {
	var all []PortRange
	for _, o := range c.Outbound {
		if slices.Contains(policies, o.Policy) {
			all = append(all, o.ports()...)
		}
	}
	return merge(all)
}

// A guard is the guard table in the kernel.
type guard struct {
	conn  *nftables.Conn
	table *nftables.Table
}

func newGuard() (*guard, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	t := guardTableRef
	return &guard{conn, &t}, nil
}

// install makes the table, in place of an older one if there is one. The old one goes
// in the same batch in which what it was for comes back.
func (g *guard) install(c Config, p program) error {
	_, found, err := findTable(guardTable)
	if err != nil {
		return err
	}
	if found {
		g.conn.DelTable(g.table)
	}
	g.conn.AddTable(g.table)
	var sets guardSets
	for _, s := range []struct {
		set   **nftables.Set
		name  string
		ports []PortRange
	}{
		{&sets.captured, "captured_ports", outboundPorts(c, Opportunistic, Require)},
		{&sets.closed, "require_outbound", outboundPorts(c, Require)},
		{&sets.answers, "require_inbound", p.inboundClosed},
	} {
		if len(s.ports) == 0 {
			continue
		}
		if *s.set, err = portSet(g.conn, g.table, s.name, s.ports); err != nil {
			return err
		}
	}
	return addChains(g.conn, g.table, guardChains(c, p, sets)...)
}

// remove takes a missing table as removed.
func (g *guard) remove() error {
	_, found, err := findTable(guardTable)
	if err != nil || !found {
		return err
	}
	g.conn.DelTable(g.table)
	return g.conn.Flush()
}

// note writes s down before it is made.
func (g *guard) note(s setting) error {
	r := nftRule{comment: fmt.Sprintf("%s=%s->%s", s.path, s.old, s.new), terms: []term{goBack()}}
	r.add(g.conn, &nftables.Chain{Name: notesChain, Table: g.table})
	return g.conn.Flush()
}

// notes reads what note has written, oldest first.
func (g *guard) notes() ([]setting, error) {
	rules, err := g.conn.GetRules(g.table, &nftables.Chain{Name: notesChain, Table: g.table})
	if err != nil {
		return nil, err
	}
	var all []setting
	for _, r := range rules {
		comment := strings.TrimRight(string(userdata.Get(r.UserData, userdata.TypeComment)), "\x00")
		s, err := parseNote(comment)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// parseNote reads what note writes. Names of devices may have anything but a slash in
// them; values have neither an equals sign nor an arrow.
func parseNote(comment string) (setting, error) {
	at := strings.LastIndexByte(comment, '=')
	if at < 0 {
		return setting{}, fmt.Errorf("unreadable note %q", comment)
	}
	file, values := comment[:at], comment[at+1:]
	old, now, ok := strings.Cut(values, "->")
	if !ok || !strings.HasPrefix(file, "net/") || path.Clean(file) != file {
		return setting{}, fmt.Errorf("unreadable note %q", comment)
	}
	return setting{sysctlPath(file), old, now}, nil
}
