//go:build linux

package routing

import (
	"net/netip"
	"strings"
	"testing"
)

func prefixes(s ...string) (ps []netip.Prefix) {
	for _, p := range s {
		ps = append(ps, netip.MustParsePrefix(p))
	}
	return ps
}

func ports(t *testing.T, s ...string) (rs []PortRange) {
	t.Helper()
	for _, p := range s {
		r, err := ParsePortRange(p)
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
	}
	return rs
}

const (
	h4, s4 = "198.18.0.1", "198.18.0.2"
	h6, s6 = "fd74:6370:6372::1", "fd74:6370:6372::2"
)

// testConfig captures port 80 of the server's network, and offers ports 80 and 22.
func testConfig(t *testing.T) Config {
	return Config{
		Interface: "tct0",
		Host4:     netip.MustParseAddr(h4), Stack4: netip.MustParseAddr(s4),
		Host6: netip.MustParseAddr(h6), Stack6: netip.MustParseAddr(s6),
		Outbound: []Outbound{{To: prefixes("10.1.0.0/16", "fd01::/64"), Ports: ports(t, "80"), Policy: Opportunistic}},
		Inbound:  []Inbound{{Ports: ports(t, "80", "22"), Policy: Opportunistic}},
	}
}

// A scene is the host under test with a device, and another host on each side.
type scene struct {
	server, neighbour *netNS
	tun               *tunDevice
	host              *Host
}

// newScene has the host under test at .1, server 10.1.0.2 and neighbour 10.2.0.2,
// whose way to everywhere is the host; the same in IPv6.
func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{server: newNS(t, "server"), neighbour: newNS(t, "neighbour")}
	join(t, end{nil, "up0", []string{"10.1.0.1/16", "fd01::1/64"}}, end{s.server, "srv0", []string{"10.1.0.2/16", "fd01::2/64"}})
	join(t, end{nil, "lan0", []string{"10.2.0.1/16", "fd02::1/64"}}, end{s.neighbour, "nei0", []string{"10.2.0.2/16", "fd02::2/64"}})
	s.server.run("ip", "route", "add", "default", "via", "10.1.0.1")
	s.server.run("ip", "route", "add", "default", "via", "fd01::1")
	s.neighbour.run("ip", "route", "add", "default", "via", "10.2.0.1")
	s.neighbour.run("ip", "route", "add", "default", "via", "fd02::1")
	return s
}

func (s *scene) apply(t *testing.T, c Config) {
	t.Helper()
	if err := Check(t.Context(), c); err != nil {
		t.Fatalf("Check: %v", err)
	}
	s.tun = openTUN(t, c.Interface)
	h, err := Apply(t.Context(), c, testLog(t))
	if err != nil {
		t.Fatalf("Apply: %v", err)
	}
	s.host = h
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	s.tun.read()
}

// a place has the addresses of the scene in one IP version.
type place struct{ host, server, lan, neighbour, h, s string }

var places = []place{
	{"10.1.0.1", "10.1.0.2", "10.2.0.1", "10.2.0.2", h4, s4},
	{"fd01::1", "fd01::2", "fd02::1", "fd02::2", h6, s6},
}

func at(addr string, port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port).String()
}

func TestCapturesWhatTheTableSays(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	before := snapshot(t)
	s.apply(t, testConfig(t))
	for _, p := range places {
		// Captured: the program's own address, and nothing on the wire.
		c := dial(t, nil, "", at(p.server, 80))
		syn := s.tun.want(p.hostEnd() + " > " + at(p.server, 80) + " <S>")
		src, _ := endsOf(syn)
		s.tun.send(at(p.server, 80), src.String(), "S.", 1000, tcpOf(syn).Seq+1, "")
		if c := <-c; c.err != nil {
			t.Errorf("connect to captured port: %v", c.err)
		}
		// Not captured.
		l := s.server.listen(at(p.server, 81))
		if c := <-dial(t, nil, "", l.Addr().String()); c.err != nil {
			t.Errorf("port 81: %v", c.err)
		}
	}
	s.tun.close()
	if err := s.host.Close(); err != nil {
		t.Error(err)
	}
	sameAs(t, before)
}

func (p place) hostEnd() string { return strings.TrimSuffix(at(p.host, 0), "0") + "*" }
