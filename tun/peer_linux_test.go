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

// A peer is a second network namespace, behind a veth pair: 198.51.100.1 here,
// 198.51.100.2 there.
type peer struct {
	thread chan func() // runs on a thread that is there
}

func newPeer(tb testing.TB) *peer {
	tb.Helper()
	p := &peer{thread: make(chan func())}
	ready := make(chan error)
	var ns netns.NsHandle
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			ns, err = netns.Get()
		}
		ready <- err
		for f := range p.thread {
			f()
		}
	}()
	tb.Cleanup(func() { close(p.thread) })
	if err := <-ready; err != nil {
		tb.Fatalf("second network namespace: %v", err)
	}
	defer func() { _ = ns.Close() }()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth-near"}, PeerName: "veth-far", PeerNamespace: netlink.NsFd(ns)}
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

// do runs f in the peer's namespace.
func (p *peer) do(f func()) {
	done := make(chan struct{})
	p.thread <- func() {
		defer close(done) // also when f ends the test, and the thread with it
		f()
	}
	<-done
}

func (p *peer) listen(tb testing.TB, addr string) net.Listener {
	tb.Helper()
	var l net.Listener
	var err error
	p.do(func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		tb.Fatalf("peer: %v", err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	return l
}
