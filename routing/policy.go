package routing

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A Policy says what becomes of the connections that a rule matches.
type Policy uint8

const (
	Opportunistic Policy = iota // captured; in clear if it must be
	Require                     // captured; never in clear, whatever happens to us
	Bypass                      // not captured
)

var policyNames = [...]string{Opportunistic: "opportunistic", Require: "require", Bypass: "bypass"}

func (p Policy) String() string {
	if int(p) < len(policyNames) {
		return policyNames[p]
	}
	return fmt.Sprintf("policy(%d)", uint8(p))
}

// ParsePolicy is the inverse of String.
func ParsePolicy(s string) (Policy, error) {
	if i := slices.Index(policyNames[:], s); i >= 0 {
		return Policy(i), nil
	}
	return 0, fmt.Errorf("unknown policy %q, one of: %s", s, strings.Join(policyNames[:], ", "))
}

// A PortRange is a range of TCP ports, both ends included.
type PortRange struct{ First, Last uint16 }

// ParsePortRange reads "80" or "9000-9100". Port 0 is no port.
func ParsePortRange(s string) (PortRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	r := PortRange{uint16(a), uint16(b)}
	if errA != nil || errB != nil || !r.valid() {
		return PortRange{}, fmt.Errorf("bad port or range %q, want for example 80 or 9000-9100", s)
	}
	return r, nil
}

func (r PortRange) valid() bool { return r.First > 0 && r.First <= r.Last }

// Contains reports whether port lies in the range.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

var allPorts = PortRange{1, 65535}

// An Outbound rule matches connections by where they go: local ones, and those of
// machines that are routed through this host.
type Outbound struct {
	To     []netip.Prefix // never covers an address of the host itself
	Except []netip.Prefix // parts of To that this rule does not match
	Ports  []PortRange    // of the destination; none means all
	Policy Policy
}

func (o Outbound) matches(dst netip.AddrPort) bool {
	in := func(ps []netip.Prefix) bool {
		return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(dst.Addr()) })
	}
	return inPorts(o.ports(), dst.Port()) && in(o.To) && !in(o.Except)
}

func (o Outbound) ports() []PortRange {
	if len(o.Ports) == 0 {
		return []PortRange{allPorts}
	}
	return o.Ports
}

// An Inbound rule matches connections of other hosts to ports of this one.
type Inbound struct {
	Ports  []PortRange // must be given
	Policy Policy
}

func inPorts(rs []PortRange, port uint16) bool {
	return slices.ContainsFunc(rs, func(r PortRange) bool { return r.Contains(port) })
}

// A Config is all that this package needs to know. H, the kernel's address on the
// link, is where inbound connections are delivered; S is that of the stack behind
// the TUN.
type Config struct {
	Interface     string     // name of the TUN device
	Host4, Stack4 netip.Addr // H and S; both zero: IPv4 is left alone
	Host6, Stack6 netip.Addr // the same for IPv6
	MTU           int        // of the device, in bytes; 0 leaves it as it is
	Outbound      []Outbound
	Inbound       []Inbound
}

// maxOutbound bounds the outbound rules of a Config: each has a FIB rule priority of
// its own, and the priorities of one start are a small fixed range.
const maxOutbound = slotSize - capturePriority - 1

// The kernel switches IPv6 off on a device with a smaller MTU than minMTU (RFC 8200,
// section 5), and a TUN takes no larger packet than IPv4 can say.
const minMTU, maxMTU = 1280, 65535

// maxFIBRules bounds what a Config compiles to. The kernel walks the list for every
// route lookup it has not cached.
const maxFIBRules = 4096

// Validate reports what is wrong with c by itself, whatever the host looks like.
// The error is an *Error.
func (c Config) Validate() error {
	bad := func(fix, format string, a ...any) error {
		return &Error{What: "use this configuration", Err: fmt.Errorf(format, a...), Fix: fix}
	}
	if n := c.Interface; n == "" || len(n) > 15 || n == "." || n == ".." || strings.ContainsAny(n, "/: \t\n%\"") {
		return bad("choose interface.name of 1 to 15 letters, digits and hyphens", "bad device name %q", n)
	}
	if !c.family(4).on() && !c.family(6).on() {
		return bad("give host4 and stack4, or host6 and stack6", "the link has no addresses")
	}
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
		return bad("leave mtu out, or give a larger one", "mtu %d, want %d to %d", c.MTU, minMTU, maxMTU)
	}
	for _, v := range []int{4, 6} {
		f := c.family(v)
		switch {
		case f.host.IsValid() != f.stack.IsValid():
			return bad(fmt.Sprintf("give both host%d and stack%d", v, v), "one of two addresses is missing")
		case !f.on():
		case f.host == f.stack:
			return bad(fmt.Sprintf("give host%d and stack%d different addresses", v, v), "%v is given twice", f.host)
		default:
			for _, a := range []netip.Addr{f.host, f.stack} {
				if a.Is4() != (v == 4) || a.Is4In6() || a.Zone() != "" || !a.IsGlobalUnicast() {
					return bad(fmt.Sprintf("give host%d and stack%d two unused unicast addresses", v, v), "%v is not usable", a)
				}
			}
		}
	}
	if len(c.Outbound) > maxOutbound {
		return bad("join rules with the same policy", "%d outbound rules, at most %d", len(c.Outbound), maxOutbound)
	}
	for i, o := range c.Outbound {
		at := fmt.Sprintf("outbound[%d]", i)
		if len(o.To) == 0 {
			return bad("name the destinations", "%s.to is empty", at)
		}
		for _, p := range slices.Concat(o.To, o.Except) {
			switch {
			case !p.IsValid() || p.Addr().Zone() != "" || p.Addr().Is4In6():
				return bad("write it as 10.20.0.0/16 or fd00:20::/48", "%s: bad prefix %v", at, p)
			case p != p.Masked():
				return bad(fmt.Sprintf("write it as %v", p.Masked()), "%s: %v has bits set behind the prefix", at, p)
			}
		}
		for _, p := range o.To {
			if v := version(p.Addr()); !c.family(v).on() {
				return bad(fmt.Sprintf("remove it, or give host%d and stack%d on a host with IPv%d", v, v, v), "%s: %v, but IPv%d is off", at, p, v)
			}
		}
		if err := checkRule(at, o.Ports, o.Policy); err != nil {
			return bad("see the list of ports and policies in the manual", "%w", err)
		}
	}
	for i, in := range c.Inbound {
		at := fmt.Sprintf("inbound[%d]", i)
		if len(in.Ports) == 0 {
			return bad("name the ports", "%s.ports is empty", at)
		}
		if err := checkRule(at, in.Ports, in.Policy); err != nil {
			return bad("see the list of ports and policies in the manual", "%w", err)
		}
	}
	if n := len(compile(c, 0).rules); n > maxFIBRules {
		return bad("use fewer and larger prefixes and port ranges", "it needs %d routing rules, at most %d", n, maxFIBRules)
	}
	return nil
}

func checkRule(at string, ports []PortRange, p Policy) error {
	for _, r := range ports {
		if !r.valid() {
			return fmt.Errorf("%s: bad port range %d-%d", at, r.First, r.Last)
		}
	}
	if int(p) >= len(policyNames) {
		return fmt.Errorf("%s: unknown policy %d", at, p)
	}
	return nil
}

// family is the part of a Config that belongs to one IP version.
type family struct{ host, stack netip.Addr }

func (f family) on() bool { return f.host.IsValid() && f.stack.IsValid() }

func (c Config) family(version int) family {
	if version == 4 {
		return family{c.Host4, c.Stack4}
	}
	return family{c.Host6, c.Stack6}
}

func version(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

// A Table answers from the rules of a Config what they say of a connection.
type Table struct {
	outbound []Outbound
	inbound  []Inbound
}

// NewTable checks c as Validate does.
func NewTable(c Config) (*Table, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &Table{slices.Clone(c.Outbound), slices.Clone(c.Inbound)}, nil
}

// Outbound gives the first outbound rule that matches dst, by index and policy; ok
// is false if none does, and the connection is then left alone. It does not know the
// addresses of the host, which no rule covers.
func (t *Table) Outbound(dst netip.AddrPort) (rule int, p Policy, ok bool) {
	dst = netip.AddrPortFrom(dst.Addr().Unmap().WithZone(""), dst.Port())
	for i, o := range t.outbound {
		if o.matches(dst) {
			return i, o.Policy, true
		}
	}
	return 0, 0, false
}

// Inbound gives the first inbound rule that matches a local port.
func (t *Table) Inbound(port uint16) (rule int, p Policy, ok bool) {
	for i, in := range t.inbound {
		if inPorts(in.Ports, port) {
			return i, in.Policy, true
		}
	}
	return 0, 0, false
}
