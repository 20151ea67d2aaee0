package tun

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNetns reruns the calling top-level test in a child that owns a fresh network
// namespace, and reports true there. The namespace dies with the child. As root the
// child keeps root's user namespace, since containers may forbid a new one.
func inNetns(t *testing.T) bool {
	t.Helper()
	const marker = "TCPCRYPT_TEST_IN_NETNS"
	if os.Getenv(marker) == t.Name() {
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), marker+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) { // a skip is not a pass
		t.Fatalf("in namespace: %v", err)
	}
	return false
}

var (
	kernel4   = netip.MustParseAddr("192.0.2.1")
	netstack4 = netip.MustParseAddr("192.0.2.2")
	kernel6   = netip.MustParseAddr("2001:db8::1")
	netstack6 = netip.MustParseAddr("2001:db8::2")
)

// openDevice returns a device that is up and has the kernel's addresses, in a network
// namespace that the test owns.
func openDevice(tb testing.TB, o Options) *Device {
	tb.Helper()
	if o.Name == "" {
		o.Name = "tun-test%d"
	}
	if o.MTU == 0 {
		o.MTU = maxPacket
	}
	d, err := Open(o)
	if err != nil {
		tb.Fatalf("Open: %v", err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Errorf("Device.Close: %v", err)
		}
	})
	setUp(tb, "lo")
	setUp(tb, d.Name())
	addAddress(tb, d.Name(), netip.PrefixFrom(kernel4, 24))
	addAddress(tb, d.Name(), netip.PrefixFrom(kernel6, 64))
	return d
}

func linkByName(tb testing.TB, name string) netlink.Link {
	tb.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		tb.Fatalf("link %s: %v", name, err)
	}
	return l
}

func setUp(tb testing.TB, name string) {
	tb.Helper()
	if err := netlink.LinkSetUp(linkByName(tb, name)); err != nil {
		tb.Fatalf("link %s up: %v", name, err)
	}
}

func addAddress(tb testing.TB, link string, p netip.Prefix) {
	tb.Helper()
	addr := &netlink.Addr{IPNet: &net.IPNet{
		IP:   p.Addr().AsSlice(),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}, Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrAdd(linkByName(tb, link), addr); err != nil {
		tb.Fatalf("address %v: %v", p, err)
	}
}

func newTestEndpoint(tb testing.TB, d *Device, o EndpointOptions) *Endpoint {
	tb.Helper()
	e, err := NewEndpoint(d, o)
	if err != nil {
		tb.Fatalf("NewEndpoint: %v", err)
	}
	tb.Cleanup(e.Close)
	return e
}

func kernelListen(tb testing.TB, a netip.AddrPort) net.Listener {
	tb.Helper()
	l, err := net.Listen("tcp", a.String())
	if err != nil {
		tb.Fatalf("kernel: %v", err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	return l
}

func kernelDial(tb testing.TB, a netip.AddrPort) net.Conn {
	tb.Helper()
	d := net.Dialer{Timeout: 20 * time.Second} // the kernel's own is over two minutes
	c, err := d.DialContext(context.Background(), "tcp", a.String())
	if err != nil {
		tb.Fatalf("kernel: %v", err)
	}
	return c
}
