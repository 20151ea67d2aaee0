package tun

import (
	"net"
	"net/netip"
	"runtime"
	"testing"

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
