package routing

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	mdl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A watcher follows the devices of the host: their MTUs, and whether they forward. It
// takes a message from the kernel as news that something has changed, and looks at
// everything again; so it does not matter if messages get lost.
type watcher struct {
	conn   *mdl.Conn
	kernel *kernel
	device string
	fwd    *forwarding
	log    *slog.Logger
	wg     sync.WaitGroup
	done   chan struct{} // closed before conn is

	mu       sync.Mutex // guards what follows
	mtu      map[int]uint32
	smallest uint32 // of all uplinks, 0 if there is none
}

// Groups of NETLINK_ROUTE: RTNLGRP_LINK, RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF.
var watchedGroups = []uint32{1, 24, 25}

func startWatcher(k *kernel, device string, fwd *forwarding, log *slog.Logger) (*watcher, error) {
	conn, err := mdl.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	w := &watcher{conn: conn, kernel: k, device: device, fwd: fwd, log: log, done: make(chan struct{})}
	for _, g := range watchedGroups {
		if err := conn.JoinGroup(g); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	if err := w.look(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	w.wg.Go(w.loop)
	return w, nil
}

// close stops the watcher and returns when its goroutine has gone.
func (w *watcher) close() error {
	close(w.done)
	err := w.conn.Close()
	w.wg.Wait()
	return err
}

func (w *watcher) loop() {
	for {
		_, err := w.conn.Receive()
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			select {
			case <-w.done:
			default:
				w.log.Error("devices are no longer watched", slog.Any("err", err))
			}
			return
		}
		if err := w.look(); err != nil {
			w.log.Warn("a change of devices could not be followed", slog.Any("err", err))
		}
	}
}

// look takes in the devices as they are now.
func (w *watcher) look() error {
	links, err := retryDump(w.kernel.nl.LinkList)
	if err != nil {
		return err
	}
	mtu, smallest := map[int]uint32{}, uint32(0)
	for _, l := range links {
		a := l.Attrs()
		mtu[a.Index] = uint32(a.MTU)
		if a.Name == w.device || a.RawFlags&unix.IFF_UP == 0 || a.RawFlags&unix.IFF_LOOPBACK != 0 {
			continue
		}
		if m := uint32(a.MTU); smallest == 0 || m < smallest {
			smallest = m
		}
	}
	w.mu.Lock()
	w.mtu, w.smallest = mtu, smallest
	w.mu.Unlock()
	return w.fwd.update(links)
}

// defaultMTU is for a host without any uplink, where it does not matter.
const defaultMTU = 1500

// wireMTU gives the MTU of a route, or of all uplinks together if routes is empty.
func (w *watcher) wireMTU(routes []netlink.Route) uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var m uint32
	if len(routes) > 0 {
		m = w.mtu[routes[0].LinkIndex]
		if r := uint32(routes[0].MTU); r != 0 && (m == 0 || r < m) {
			m = r
		}
	}
	switch {
	case m != 0:
		return m
	case w.smallest != 0:
		return w.smallest
	}
	return defaultMTU
}

// WireMTU is the MTU in bytes of the way from S to dst: of the route if it has one,
// else of the link; if there is no route, the smallest of all uplinks.
func (h *Host) WireMTU(dst netip.Addr) uint32 {
	// No protocol and no port in this request: the capture rules do not match it.
	routes, err := h.kernel.nl.RouteGet(net.IP(dst.Unmap().AsSlice()))
	if err != nil {
		routes = nil
	}
	return h.watcher.wireMTU(routes)
}
