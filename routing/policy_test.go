package routing

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func mustPrefixes(s ...string) (ps []netip.Prefix) {
	for _, p := range s {
		ps = append(ps, netip.MustParsePrefix(p))
	}
	return ps
}

func linkConfig() Config {
	return Config{
		Interface: "tcpcrypt0",
		Host4:     netip.MustParseAddr("198.18.0.1"), Stack4: netip.MustParseAddr("198.18.0.2"),
		Host6: netip.MustParseAddr("fd74:6370:6372::1"), Stack6: netip.MustParseAddr("fd74:6370:6372::2"),
	}
}

func TestPolicyNames(t *testing.T) {
	for _, p := range []Policy{Opportunistic, Require, Bypass} {
		if q, err := ParsePolicy(p.String()); err != nil || q != p {
			t.Errorf("ParsePolicy(%q) = %v, %v", p, q, err)
		}
	}
	if _, err := ParsePolicy("requir"); err == nil || !strings.Contains(err.Error(), "opportunistic, require, bypass") {
		t.Errorf("ParsePolicy: %v, want one that lists what is possible", err)
	}
}

func TestParsePortRange(t *testing.T) {
	for s, want := range map[string]PortRange{"80": {80, 80}, "9000-9100": {9000, 9100}, "1-65535": {1, 65535}, "65535": {65535, 65535}} {
		if r, err := ParsePortRange(s); err != nil || r != want || r.String() != s {
			t.Errorf("ParsePortRange(%q) = %v, %v", s, r, err)
		}
	}
	for _, s := range []string{"", "0", "-", "80-", "-80", "90-80", "65536", "0-80", "80-90-100", "http", "+80", " 80"} {
		if r, err := ParsePortRange(s); err == nil {
			t.Errorf("ParsePortRange(%q) = %v, want an error", s, r)
		}
	}
}

func TestFirstMatchWins(t *testing.T) {
	c := linkConfig()
	c.Outbound = []Outbound{
		{To: mustPrefixes("10.1.0.0/16"), Ports: []PortRange{{22, 22}}, Policy: Bypass},
		{To: mustPrefixes("10.0.0.0/8", "fd00::/16"), Except: mustPrefixes("10.2.0.0/16", "fd00:1::/32"), Ports: []PortRange{{1, 100}, {8000, 9000}}, Policy: Require},
		{To: mustPrefixes("0.0.0.0/0"), Policy: Opportunistic},
	}
	c.Inbound = []Inbound{
		{Ports: []PortRange{{80, 80}}, Policy: Bypass},
		{Ports: []PortRange{{1, 1024}}, Policy: Require},
	}
	table, err := NewTable(c)
	if err != nil {
		t.Fatal(err)
	}
	for dst, want := range map[string]int{
		"10.1.2.3:22": 0, "10.1.2.3:23": 1, "10.2.0.1:80": 2, "10.3.0.1:8000": 1, "10.3.0.1:9001": 2,
		"192.0.2.1:80": 2, "[fd00::1]:80": 1, "[fd00::1]:101": -1, "[fd00:1::1]:80": -1, "[::ffff:10.1.2.3]:22": 0,
	} {
		rule, policy, ok := table.Outbound(netip.MustParseAddrPort(dst))
		if ok != (want >= 0) || ok && (rule != want || policy != c.Outbound[want].Policy) {
			t.Errorf("Outbound(%s) = %d, %v, %v, want rule %d", dst, rule, policy, ok, want)
		}
	}
	for port, want := range map[uint16]int{80: 0, 79: 1, 1024: 1, 1025: -1} {
		rule, policy, ok := table.Inbound(port)
		if ok != (want >= 0) || ok && (rule != want || policy != c.Inbound[want].Policy) {
			t.Errorf("Inbound(%d) = %d, %v, %v, want rule %d", port, rule, policy, ok, want)
		}
	}
}

func TestValidateNamesWhatIsWrong(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"device name": func(c *Config) { c.Interface = "a/b" },
		"no addresses": func(c *Config) {
			c.Host4, c.Stack4, c.Host6, c.Stack6 = netip.Addr{}, netip.Addr{}, netip.Addr{}, netip.Addr{}
		},
		"is missing":     func(c *Config) { c.Stack6 = netip.Addr{} },
		"given twice":    func(c *Config) { c.Stack4 = c.Host4 },
		"127.0.0.1":      func(c *Config) { c.Host4 = netip.MustParseAddr("127.0.0.1") },
		"fd00::1":        func(c *Config) { c.Host4 = netip.MustParseAddr("fd00::1") },
		"mtu 100":        func(c *Config) { c.MTU = 100 },
		"outbound[0].to": func(c *Config) { c.Outbound = []Outbound{{}} },
		"bits set":       func(c *Config) { c.Outbound = []Outbound{{To: mustPrefixes("10.0.0.1/8")}} },
		"outbound[0]: ba": func(c *Config) {
			c.Outbound = []Outbound{{To: mustPrefixes("10.0.0.0/8"), Ports: []PortRange{{90, 80}}}}
		},
		"unknown policy":  func(c *Config) { c.Outbound = []Outbound{{To: mustPrefixes("10.0.0.0/8"), Policy: 7}} },
		"inbound[0].port": func(c *Config) { c.Inbound = []Inbound{{}} },
		"inbound[0]: bad": func(c *Config) { c.Inbound = []Inbound{{Ports: []PortRange{{0, 80}}}} },
		"IPv6 is off": func(c *Config) {
			c.Host6, c.Stack6 = netip.Addr{}, netip.Addr{}
			c.Outbound = []Outbound{{To: mustPrefixes("fd00::/16")}}
		},
		"outbound rules": func(c *Config) {
			c.Outbound = make([]Outbound, 1000)
		},
		"routing rules": func(c *Config) {
			var o Outbound
			for i := range 100 {
				o.To = append(o.To, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16))
				o.Ports = append(o.Ports, PortRange{uint16(2*i + 1), uint16(2*i + 1)})
			}
			c.Outbound = []Outbound{o}
		},
	} {
		c := linkConfig()
		change(&c)
		err := c.Validate()
		var e *Error
		if !errors.As(err, &e) || e.Fix == "" || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate: %v, want an *Error with %q and a fix", err, want)
		}
	}
	if err := linkConfig().Validate(); err != nil {
		t.Errorf("a link and no rules: %v", err)
	}
}
