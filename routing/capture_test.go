//go:build linux

package routing

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"golang.org/x/sys/unix"
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
	t.Helper()
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
	s.server.ip("route", "add", "default", "via", "10.1.0.1")
	s.server.ip("route", "add", "default", "via", "fd01::1")
	s.neighbour.ip("route", "add", "default", "via", "10.2.0.1")
	s.neighbour.ip("route", "add", "default", "via", "fd02::1")
	return s
}

func (s *scene) apply(t *testing.T, c Config) {
	t.Helper()
	s.applyTrial(t, c, trial{})
}

func (s *scene) applyTrial(t *testing.T, c Config, try trial) {
	t.Helper()
	if err := Check(t.Context(), c); err != nil {
		t.Fatalf("Check: %v", err)
	}
	s.tun = openTUN(t, c.Interface)
	h, err := apply(t.Context(), c, testLog(t), try)
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

// answer is the far end's SYN-ACK to a SYN, written into the host.
func (s *scene) answer(syn gopacket.Packet) {
	src, dst := endsOf(syn)
	s.tun.send(dst.String(), src.String(), "S.", 1000, tcpOf(syn).Seq+1)
}

// acceptOne takes one connection and gives the address that its service sees.
func acceptOne(t *testing.T, l net.Listener) netip.AddrPort {
	t.Helper()
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatalf("accept: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

func TestCapturesWhatTheTableSays(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	c := testConfig(t)
	c.Outbound = []Outbound{
		{To: prefixes("10.1.0.0/24", "fd01::/64"), Ports: ports(t, "7000"), Policy: Bypass},
		{To: prefixes("10.1.0.0/16", "fd01::/64"), Except: prefixes("10.1.0.3/32", "fd01::3/128"), Ports: ports(t, "80", "6000-65535"), Policy: Require},
		{To: prefixes("10.1.0.3/32", "fd01::3/128"), Ports: ports(t, "81"), Policy: Opportunistic},
	}
	for _, a := range []string{"10.1.0.3/16", "fd01::3/64"} {
		s.server.ip("addr", "add", a, "dev", "srv0", "nodad")
	}
	before := snapshot(t)
	s.apply(t, c)
	for _, p := range places {
		other := strings.TrimSuffix(p.server, "2") + "3"
		for _, c := range []struct {
			dst      string
			captured bool
		}{
			{at(p.server, 80), true},
			{at(p.server, 81), false},
			{at(p.server, 5999), false},
			{at(p.server, 6000), true},
			{at(p.server, 65535), true},
			{at(p.server, 7000), false},
			{at(other, 80), false},
			{at(other, 81), true},
			{at(other, 6000), false},
		} {
			t.Run(c.dst, func(t *testing.T) {
				l := s.server.listen(c.dst)
				conn := dial(t, nil, "", c.dst)
				if c.captured {
					s.answer(s.tun.want(at(p.host, 0)[:len(at(p.host, 0))-1] + "* > " + c.dst + " <S>"))
					s.tun.want("* > " + c.dst + " <.>")
				}
				if c := <-conn; c.err != nil {
					t.Errorf("connect: %v", c.err)
				}
				if !c.captured {
					acceptOne(t, l)
					s.tun.none(c.dst + " is not captured")
				}
			})
		}
	}
	s.tun.close()
	if err := s.host.Close(); err != nil {
		t.Error(err)
	}
	sameAs(t, before)
}

func TestOwnAddressesAreNeverCaptured(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	c := testConfig(t)
	c.Outbound[0].To, c.Outbound[0].Ports = prefixes("0.0.0.0/0", "::/0"), nil
	s.apply(t, c)
	for _, addr := range []string{"10.1.0.1", "10.2.0.1", "127.0.0.1", "fd01::1", "fd02::1", "::1", h4, h6} {
		l, err := net.Listen("tcp", at(addr, 80))
		if err != nil {
			t.Fatal(err)
		}
		if c := <-dial(t, nil, "", at(addr, 80)); c.err != nil {
			t.Errorf("%s: %v", addr, c.err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	s.tun.none("these are the host's own")
}

func TestOtherProtocolsAreLeftAlone(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	c := testConfig(t)
	c.Outbound[0].Ports = nil
	c.Outbound[0].Policy = Require
	s.apply(t, c)
	for _, p := range places {
		var far net.PacketConn
		var err error
		s.server.do(func() { far, err = net.ListenPacket("udp", at(p.server, 80)) })
		if err != nil {
			t.Fatal(err)
		}
		near, err := net.Dial("udp", at(p.server, 80))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := near.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := far.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := far.ReadFrom(make([]byte, 10)); err != nil {
			t.Errorf("UDP to %s: %v", at(p.server, 80), err)
		}
		_, _ = far.Close(), near.Close()
		ping(t, p.server)
	}
}

// ping fails without an echo. It needs no program and no raw socket.
func ping(t *testing.T, addr string) {
	t.Helper()
	a := netip.MustParseAddr(addr)
	af, proto, kind := unix.AF_INET, unix.IPPROTO_ICMP, byte(8)
	if a.Is6() {
		af, proto, kind = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128
	}
	fd, err := unix.Socket(af, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "icmp")
	defer func() { _ = f.Close() }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}); err != nil {
		t.Fatal(err)
	}
	msg := []byte{kind, 0, 0, 0, 0, 1, 0, 1}
	var to unix.Sockaddr
	if a.Is4() {
		msg[2], msg[3] = 0xf7, 0xfd // checksum of the rest; the kernel makes that of ICMPv6
		to = &unix.SockaddrInet4{Addr: a.As4()}
	} else {
		to = &unix.SockaddrInet6{Addr: a.As16()}
	}
	if err := unix.Sendto(fd, msg, 0, to); err != nil {
		t.Errorf("ping %s: %v", addr, err)
		return
	}
	buf := make([]byte, 200)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			t.Errorf("ping %s: %v", addr, err)
			return
		}
		switch from := from.(type) {
		case *unix.SockaddrInet4:
			if n >= 28 && buf[20] == 0 && netip.AddrFrom4(from.Addr) == a {
				return
			}
		case *unix.SockaddrInet6:
			if n >= 8 && buf[0] == 129 && netip.AddrFrom16(from.Addr) == a {
				return
			}
		}
	}
}
