package routing

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCompiledRules(t *testing.T) {
	c := linkConfig()
	c.Host6, c.Stack6 = netip.Addr{}, netip.Addr{}
	c.Outbound = []Outbound{
		{To: mustPrefixes("10.1.2.3/32"), Policy: Bypass},
		{To: mustPrefixes("10.1.0.0/16", "10.2.0.0/16"), Except: mustPrefixes("10.1.7.0/24", "192.168.0.0/16"),
			Ports: []PortRange{{80, 80}, {5432, 5432}}, Policy: Opportunistic},
		{To: mustPrefixes("10.0.0.0/8"), Ports: []PortRange{{443, 443}, {60000, 65535}, {8000, 8100}, {8050, 9000}}, Policy: Require},
		{To: mustPrefixes("0.0.0.0/0"), Ports: []PortRange{{80, 80}}, Policy: Opportunistic},
	}
	c.Inbound = []Inbound{{Ports: []PortRange{{80, 80}}, Policy: Opportunistic}, {Ports: []PortRange{{5432, 5432}}, Policy: Require}}
	var got []string
	p := compile(c, slot0)
	for _, r := range p.rules {
		got = append(got, r.String())
	}
	want := []string{
		"2000: from all iif tcpcrypt0 goto 2499",
		"2001: from 198.18.0.1 lookup 29795",
		"2001: from 198.18.0.1 unreachable",
		"2002: from all iif lo ipproto tcp sport 5432 lookup 29795",
		"2002: from all iif lo ipproto tcp sport 5432 unreachable",
		"2003: from all fwmark 0x8000000/0x8000000 goto 2499",
		"2010: from all to 10.1.2.3 ipproto tcp goto 2499",
		"2011: from all to 10.1.7.0/24 ipproto tcp goto 2012",
		"2011: from all to 10.1.0.0/16 ipproto tcp dport 80 lookup 29795",
		"2011: from all to 10.1.0.0/16 ipproto tcp dport 80 goto 2499",
		"2011: from all to 10.1.0.0/16 ipproto tcp dport 5432 lookup 29795",
		"2011: from all to 10.2.0.0/16 ipproto tcp dport 80 lookup 29795",
		"2011: from all to 10.2.0.0/16 ipproto tcp dport 80 goto 2499",
		"2011: from all to 10.2.0.0/16 ipproto tcp dport 5432 lookup 29795",
		"2012: from all to 10.0.0.0/8 ipproto tcp dport 443 lookup 29795",
		"2012: from all to 10.0.0.0/8 ipproto tcp dport 443 unreachable",
		"2012: from all to 10.0.0.0/8 ipproto tcp dport 8000-9000 lookup 29795",
		"2012: from all to 10.0.0.0/8 ipproto tcp dport 8000-9000 unreachable",
		"2012: from all ipproto tcp dport 1-59999 goto 2013",
		"2012: from all to 10.0.0.0/8 ipproto tcp lookup 29795",
		"2012: from all to 10.0.0.0/8 ipproto tcp unreachable",
		"2013: from all to 0.0.0.0/0 ipproto tcp dport 80 lookup 29795",
		"2499: from all nop",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("rules (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]PortRange{{80, 80}, {5432, 5432}}, p.inbound); d != "" {
		t.Errorf("inbound:\n%s", d)
	}
	if d := cmp.Diff([]PortRange{{5432, 5432}}, p.inboundClosed); d != "" {
		t.Errorf("closed:\n%s", d)
	}
}

// Where a packet goes in the end.
const (
	toMain   = "main"
	toDevice = "device"
	nowhere  = "nowhere"
)

// walk does with rules what the kernel does, for a local program's segment to dst.
func walk(rules []fibRule, dst netip.AddrPort, alive bool) string {
	at := 0
	for i := 0; i < len(rules); i++ {
		r := rules[i]
		matches := r.version == version(dst.Addr()) && r.priority >= at && r.iif == "" && !r.from.IsValid() && !r.marked &&
			(!r.to.IsValid() || r.to.Contains(dst.Addr())) && (!r.dport.valid() || r.dport.Contains(dst.Port()))
		if r.dport.Last == 65535 {
			panic("the kernel refuses this range")
		}
		if !matches {
			continue
		}
		switch r.action {
		case actionNop:
		case actionLookup:
			if alive {
				return toDevice
			}
		case actionGoto:
			at = r.target
		case actionUnreachable:
			return nowhere
		}
	}
	return toMain
}

// The table and the compiled rules agree on every destination, alive and dead.
func TestRulesEqualTable(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	prefix := func() netip.Prefix {
		if random.IntN(4) == 0 {
			return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(random.IntN(8))}), 125+random.IntN(4)).Masked()
		}
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(random.IntN(8))}), 28+random.IntN(5)).Masked()
	}
	interesting := []uint16{1, 2, 3, 5, 79, 80, 81, 443, 444, 1023, 1024, 65533, 65534, 65535}
	for range 300 {
		c := linkConfig()
		for range 1 + random.IntN(5) {
			o := Outbound{Policy: Policy(random.IntN(3)), To: []netip.Prefix{prefix()}}
			for range random.IntN(3) {
				o.To = append(o.To, prefix())
			}
			for range random.IntN(3) {
				o.Except = append(o.Except, prefix())
			}
			for range random.IntN(4) {
				a, b := interesting[random.IntN(len(interesting))], interesting[random.IntN(len(interesting))]
				o.Ports = append(o.Ports, PortRange{min(a, b), max(a, b)})
			}
			c.Outbound = append(c.Outbound, o)
		}
		table, err := NewTable(c)
		if err != nil {
			t.Fatal(err)
		}
		rules := compile(c, slot1).rules
		if !slices.IsSortedFunc(rules, func(a, b fibRule) int {
			if a.version != b.version {
				return a.version - b.version
			}
			return a.priority - b.priority
		}) {
			t.Fatal("rules are not in order")
		}
		for host := range 8 {
			for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(host)}), netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(host)})} {
				for _, port := range interesting {
					dst := netip.AddrPortFrom(a, port)
					_, policy, ok := table.Outbound(dst)
					alive, dead := toMain, toMain
					if ok && policy != Bypass {
						alive = toDevice
					}
					if ok && policy == Require {
						dead = nowhere
					}
					if g := walk(rules, dst, true); g != alive {
						t.Fatalf("%+v: %v goes to %s, want %s", c.Outbound, dst, g, alive)
					}
					if g := walk(rules, dst, false); g != dead {
						t.Fatalf("%+v: after a crash %v goes to %s, want %s\n%v", c.Outbound, dst, g, dead, rules)
					}
				}
			}
		}
	}
}

func TestPortsSubtractAndMerge(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	some := func() (rs []PortRange) {
		for range random.IntN(5) {
			a, b := uint16(1+random.IntN(20)), uint16(1+random.IntN(20))
			rs = append(rs, PortRange{min(a, b), max(a, b)})
		}
		return rs
	}
	for range 1000 {
		a, b := some(), some()
		m, s := merge(a), subtract(a, b)
		for i := 1; i < len(m); i++ {
			if m[i].First <= m[i-1].Last+1 {
				t.Fatalf("merge(%v) = %v", a, m)
			}
		}
		for p := uint16(1); p <= 21; p++ {
			if inPorts(m, p) != inPorts(a, p) {
				t.Fatalf("merge(%v) = %v", a, m)
			}
			if inPorts(s, p) != (inPorts(a, p) && !inPorts(b, p)) {
				t.Fatalf("subtract(%v, %v) = %v", a, b, s)
			}
		}
	}
	if m := merge([]PortRange{{65535, 65535}, {1, 65534}}); !slices.Equal(m, []PortRange{allPorts}) {
		t.Errorf("merge = %v", m)
	}
}

func TestSlotsAreBehindLocalAndBeforeOthers(t *testing.T) {
	const tailscale = 5210
	if slot0 <= 0 || slot1+slotSize >= tailscale || capturePriority+maxOutbound > landPriority {
		t.Errorf("slots %d and %d of %d with %d rules", slot0, slot1, slotSize, maxOutbound)
	}
	// The mark is a single bit outside of what Kubernetes, Tailscale and others use.
	if bits := binary.BigEndian.AppendUint32(nil, mark|oldMark); !strings.HasPrefix(string(bits), "\x0c") || mark&oldMark != 0 {
		t.Errorf("marks %#x, %#x", mark, oldMark)
	}
}
