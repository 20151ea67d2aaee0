package tun

import (
	"net"
	"net/netip"
	"runtime"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A namespace is a network namespace of its own, on one thread of this process.
type namespace struct {
	thread chan func()    // runs on that thread
	handle netns.NsHandle // open while the test runs
}

func newNamespace(tb testing.TB) *namespace {
	tb.Helper()
	n := &namespace{thread: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.handle, err = netns.Get()
		}
		ready <- err
		for f := range n.thread {
			f()
		}
	}()
	if err := <-ready; err != nil {
		close(n.thread)
		tb.Fatalf("new network namespace: %v", err)
	}
	tb.Cleanup(func() {
		close(n.thread)
		_ = n.handle.Close()
	})
	return n
}

// do runs f in the namespace. What f makes stays there.
func (n *namespace) do(f func()) {
	done := make(chan struct{})
	n.thread <- func() {
		defer close(done)
		f()
	}
	<-done
}

// newPeer returns a second namespace behind a veth pair: 198.51.100.1 in the calling
// thread's, 198.51.100.2 there.
func newPeer(tb testing.TB) *namespace {
	tb.Helper()
	p := newNamespace(tb)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth-near"}, PeerName: "veth-far", PeerNamespace: netlink.NsFd(p.handle)}
	if err := netlink.LinkAdd(veth); err != nil {
		tb.Fatalf("veth: %v", err)
	}
	tb.Cleanup(func() { _ = netlink.LinkDel(veth) })
	addAddress(tb, "veth-near", netip.MustParsePrefix("198.51.100.1/24"))
	setUp(tb, "veth-near")
	p.do(func() {
		addAddress(tb, "veth-far", netip.MustParsePrefix("198.51.100.2/24"))
		setUp(tb, "veth-far")
	})
	return p
}

func (n *namespace) listen(tb testing.TB, addr string) net.Listener {
	tb.Helper()
	var l net.Listener
	var err error
	n.do(func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		tb.Fatalf("peer: %v", err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	return l
}

// noTSO makes the kernel cut super-segments before they reach a link.
func noTSO(tb testing.TB, link string) {
	tb.Helper()
	const ethtoolSetTSO = 0x1f // ETHTOOL_STSO
	value := struct{ cmd, data uint32 }{ethtoolSetTSO, 0}
	ifreq := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(ifreq.name[:], link)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
		tb.Fatalf("no TSO on %s: %v", link, errno)
	}
}
