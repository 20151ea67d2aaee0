package tun

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// exchangeAll moves size bytes each way over connections between the kernel and
// netstack, dialled from either side, with either IP version.
func exchangeAll(t *testing.T, s *stack.Stack, size int64) {
	t.Helper()
	for _, host := range []netip.Addr{kernel4, kernel6} {
		to := netip.AddrPortFrom(host, 80)
		c, k := connect(t, kernelListen(t, to), func() net.Conn { return netstackDial(t, s, to) })
		exchange(t, c, k, size)
		exchange(t, k, c, size)
	}
	for _, host := range []netip.Addr{netstack4, netstack6} {
		to := netip.AddrPortFrom(host, 80)
		k, c := connect(t, netstackListen(t, s, to), func() net.Conn { return kernelDial(t, to) })
		exchange(t, c, k, size)
		exchange(t, k, c, size)
	}
}

func checkNoDrops(t *testing.T, s Stats) {
	t.Helper()
	if n := s.DropMalformed + s.DropChecksum + s.DropUnsupported + s.DropDown + s.DropNoBuffers + s.DropRefused; n != 0 {
		t.Errorf("%d packets dropped, want none: %+v", n, s)
	}
}

func TestKernelAndNetstackExchangeSuperSegments(t *testing.T) {
	if !inNetns(t) {
		return
	}
	for _, mtu := range []int{1500, maxPacket} {
		t.Run(fmt.Sprint("mtu=", mtu), func(t *testing.T) {
			d := openDevice(t, Options{MTU: mtu})
			e := newTestEndpoint(t, d, EndpointOptions{})
			s := newNetstack(t, e, netstack4, netstack6)
			exchangeAll(t, s, 32<<20)
			st := e.Stats()
			t.Logf("%+v", st)
			checkNoDrops(t, st)
			if st.Fallbacks != 0 || st.OutSegments != 0 {
				t.Errorf("%d fall-backs to %d segments, want none", st.Fallbacks, st.OutSegments)
			}
			// 128 MiB each way. At an MTU of 64 KiB a plain segment is as large as a super-
			// segment, so count those only where there is a difference.
			if perPacket := st.OutBytes / st.OutPackets; perPacket < 4096 {
				t.Errorf("%d bytes per packet written, want large ones", perPacket)
			}
			if perPacket := st.InBytes / st.InPackets; perPacket < 4096 {
				t.Errorf("%d bytes per packet read, want large ones", perPacket)
			}
			if mtu == 1500 && (st.InSuperSegments < 500 || st.OutSuperSegments < 500) {
				t.Errorf("%d super-segments read and %d written, want many", st.InSuperSegments, st.OutSuperSegments)
			}
			retransmits := s.Stats().TCP.Retransmits.Value()
			if bad := s.Stats().TCP.ChecksumErrors.Value(); bad != 0 || retransmits > 100 {
				t.Errorf("netstack saw %d checksum errors and retransmitted %d segments", bad, retransmits)
			}
		})
	}
}

// refuseOffloads makes the kernel of this endpoint one that takes no super-segment, and
// with checksums none that is partial either.
func refuseOffloads(e *Endpoint, checksums bool) {
	o := e.carrier.(*offload)
	o.writev = func(fd uintptr, iov []unix.Iovec) unix.Errno {
		h := parseVnetHeader((*[vnetHeaderLen]byte)(bytesOf(iov[0])))
		if h.superSegment() || checksums && h != (vnetHeader{}) {
			return unix.EINVAL
		}
		return writev(fd, iov)
	}
}

func TestRefusedSuperSegmentsGoInPieces(t *testing.T) {
	if !inNetns(t) {
		return
	}
	for _, checksums := range []bool{false, true} {
		t.Run(fmt.Sprint("checksums=", checksums), func(t *testing.T) {
			var logged bytes.Buffer
			d := openDevice(t, Options{MTU: 1500})
			e := newTestEndpoint(t, d, EndpointOptions{Log: slog.New(slog.NewTextHandler(&logged, nil))})
			refuseOffloads(e, checksums)
			s := newNetstack(t, e, netstack4, netstack6)
			exchangeAll(t, s, 8<<20)
			st := e.Stats()
			t.Logf("%+v", st)
			checkNoDrops(t, st)
			if st.OutSuperSegments != 0 || st.Fallbacks < 100 || st.OutSegments < 10*100 {
				t.Errorf("%d super-segments written, %d fall-backs to %d segments, want none, many, and more", st.OutSuperSegments, st.Fallbacks, st.OutSegments)
			}
			if n := bytes.Count(logged.Bytes(), []byte("\n")); n != 1 {
				t.Errorf("%d lines logged, want one:\n%s", n, logged.Bytes())
			}
			if n := tcpCounter(t, "InCsumErrors"); n != 0 {
				t.Errorf("the kernel saw %d wrong checksums", n)
			}
		})
	}
}

// tcpCounter reads a counter of this network namespace's TCP from /proc/net/snmp.
func tcpCounter(tb testing.TB, name string) int {
	tb.Helper()
	text, err := os.ReadFile("/proc/self/net/snmp")
	if err != nil {
		tb.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		if len(names) == 0 || names[0] != "Tcp:" {
			continue
		}
		if at := slices.Index(names, name); at > 0 {
			n, err := strconv.Atoi(values[at])
			if err != nil {
				tb.Fatal(err)
			}
			return n
		}
	}
	tb.Fatalf("no counter %s", name)
	return 0
}

func TestNoOffload(t *testing.T) {
	if !inNetns(t) {
		return
	}
	d := openDevice(t, Options{MTU: 1500, NoOffload: true})
	e := newTestEndpoint(t, d, EndpointOptions{})
	s := newNetstack(t, e, netstack4, netstack6)
	exchangeAll(t, s, 16<<20)
	st := e.Stats()
	t.Logf("%+v", st)
	checkNoDrops(t, st)
	if st.OutSegments < 1000 || st.InBytes/st.InPackets > 1500 {
		t.Errorf("%d segments written, %d bytes per packet read, want thousands and at most the MTU", st.OutSegments, st.InBytes/st.InPackets)
	}
	if st.InDelivered > st.InPackets*3/4 {
		t.Errorf("%d of %d packets delivered, want them merged", st.InDelivered, st.InPackets)
	}
	if n := tcpCounter(t, "InCsumErrors"); n != 0 {
		t.Errorf("the kernel saw %d wrong checksums", n)
	}
}

// TestBypassedConnectionNeverReachesNetstack lets two of the kernel's sockets talk
// while the packets of one are routed into the device, and come back as they went.
func TestBypassedConnectionNeverReachesNetstack(t *testing.T) {
	if !inNetns(t) {
		return
	}
	for _, how := range []string{"offload", "refused", "no offload"} {
		t.Run(how, func(t *testing.T) {
			d := openDevice(t, Options{MTU: 1500, NoOffload: how == "no offload"})
			bypass := func(p []byte) bool {
				l, err := parseLayout(p, maxPacket)
				return err == nil && l.proto == protoTCP && len(p) >= l.l4+20 &&
					(header.TCP(p[l.l4:]).SourcePort() == 4444 || header.TCP(p[l.l4:]).DestinationPort() == 4444)
			}
			e := newTestEndpoint(t, d, EndpointOptions{Bypass: bypass})
			if how == "refused" {
				refuseOffloads(e, true)
			}
			s := newNetstack(t, e, netstack4, netstack6)

			k, n := viaDevice(t, d)
			exchange(t, k, n, 16<<20)
			exchange(t, n, k, 16<<20)
			if got := s.Stats().TCP.ValidSegmentsReceived.Value(); got != 0 {
				t.Errorf("netstack received %d segments, want none", got)
			}
			// The last packet may be written and not counted yet.
			st := e.Stats()
			for end := time.Now().Add(10 * time.Second); how != "refused" && st.OutPackets != st.InBypassed && time.Now().Before(end); st = e.Stats() {
				time.Sleep(time.Millisecond)
			}
			t.Logf("%+v", st)
			checkNoDrops(t, st)
			if st.InBypassed < 100 {
				t.Errorf("%d packets bypassed, want hundreds", st.InBypassed)
			}
			if how != "refused" && (st.OutPackets != st.InBypassed || st.OutSuperSegments != st.InSuperSegments) {
				t.Errorf("of %d packets bypassed, %d were written; of %d super-segments, %d", st.InBypassed, st.OutPackets, st.InSuperSegments, st.OutSuperSegments)
			}
			if how == "refused" && (st.Fallbacks < st.InSuperSegments || st.OutSegments == 0) {
				t.Errorf("%d super-segments, %d fall-backs", st.InSuperSegments, st.Fallbacks)
			}
			exchangeAll(t, s, 1<<20) // others do reach it
		})
	}
}

// TestPlainSegmentsAreMerged receives from a host that sends segments of the MTU's
// size, as from a network card without receive offload.
func TestPlainSegmentsAreMerged(t *testing.T) {
	if !inNetns(t) {
		return
	}
	d := openDevice(t, Options{MTU: 1500})
	e := newTestEndpoint(t, d, EndpointOptions{})
	s := newNetstack(t, e, netstack4)
	from, to := plainSender(t, s)
	exchange(t, from, to, 32<<20)
	exchange(t, to, from, 1<<20)
	st := e.Stats()
	t.Logf("%+v", st)
	checkNoDrops(t, st)
	if st.InSuperSegments > 100 || st.InPackets < 10000 || st.InDelivered > st.InPackets*9/10 {
		t.Errorf("%d packets, %d of them super-segments, delivered as %d, want few super-segments, and packets merged",
			st.InPackets, st.InSuperSegments, st.InDelivered)
	}
}

// plainSender returns the ends of a connection between s and another host that sends
// plain segments only.
func plainSender(tb testing.TB, s *stack.Stack) (sender, netstack net.Conn) {
	tb.Helper()
	peer := newPeer(tb)
	peer.do(func() {
		noTSO(tb, "veth-far")
		dst := net.IPNet{IP: netstack4.AsSlice(), Mask: net.CIDRMask(32, 32)}
		if err := netlink.RouteAdd(&netlink.Route{Dst: &dst, Gw: net.IPv4(198, 51, 100, 1)}); err != nil {
			tb.Fatalf("route: %v", err)
		}
	})
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/forwarding", []byte("1"), 0); err != nil {
		tb.Fatal(err)
	}
	l := peer.listen(tb, "198.51.100.2:80")
	netstack, sender = connect(tb, l, func() net.Conn {
		return netstackDial(tb, s, netip.MustParseAddrPort("198.51.100.2:80"))
	})
	return sender, netstack
}

// viaDevice returns the ends of a connection between this namespace and another; the
// packets from near to far make a turn through d.
func viaDevice(t *testing.T, d *Device) (near, far net.Conn) {
	t.Helper()
	peer := newPeer(t)
	l := peer.listen(t, "198.51.100.2:4444")
	_, dst, err := net.ParseCIDR("198.51.100.2/32")
	if err != nil {
		t.Fatal(err)
	}
	// Not the way back too: the kernel drops a packet that it is to forward but has
	// found a socket of its own for.
	rule := netlink.NewRule()
	rule.IifName, rule.Dst, rule.Table, rule.Priority = "lo", dst, 7, 1
	if err := netlink.RuleAdd(rule); err != nil {
		t.Fatalf("rule: %v", err)
	}
	t.Cleanup(func() { _ = netlink.RuleDel(rule) })
	route := &netlink.Route{
		Dst: dst, LinkIndex: linkByName(t, d.Name()).Attrs().Index, Table: 7,
		Src: net.IPv4(198, 51, 100, 1),
	}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatalf("route: %v", err)
	}
	for file, value := range map[string]string{
		"all/forwarding": "1", "all/rp_filter": "0", d.Name() + "/accept_local": "1", d.Name() + "/rp_filter": "0",
	} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+file, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	return connect(t, l, func() net.Conn { return kernelDial(t, netip.MustParseAddrPort("198.51.100.2:4444")) })
}
