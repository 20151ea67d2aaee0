package tun

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

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
			exchangeAll(t, s, 64<<20)
			st := e.Stats()
			t.Logf("%+v", st)
			checkNoDrops(t, st)
			if st.Fallbacks != 0 || st.OutSegments != 0 {
				t.Errorf("%d fall-backs to %d segments, want none", st.Fallbacks, st.OutSegments)
			}
			// 256 MiB each way. At an MTU of 64 KiB a plain segment is as large as a super-
			// segment, so count those only where there is a difference.
			if perPacket := st.OutBytes / st.OutPackets; perPacket < 4096 {
				t.Errorf("%d bytes per packet written, want large ones", perPacket)
			}
			if perPacket := st.InBytes / st.InPackets; perPacket < 4096 {
				t.Errorf("%d bytes per packet read, want large ones", perPacket)
			}
			if mtu == 1500 && (st.InSuperSegments < 1000 || st.OutSuperSegments < 1000) {
				t.Errorf("%d super-segments read and %d written, want thousands", st.InSuperSegments, st.OutSuperSegments)
			}
			retransmits := s.Stats().TCP.Retransmits.Value()
			if bad := s.Stats().TCP.ChecksumErrors.Value(); bad != 0 || retransmits > 100 {
				t.Errorf("netstack saw %d checksum errors and retransmitted %d segments", bad, retransmits)
			}
		})
	}
}
