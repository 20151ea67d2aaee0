package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// MaxHosts is how many hosts a lab may have: the third byte of an address tells them apart.
const MaxHosts = 250

// hostInterface is the one interface of each host, but for lo and what its daemon makes.
const hostInterface = "eth0"

// Prefixes hold every address of a lab, and nothing else is routed in it.
func Prefixes() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.83.0.0/16"), netip.MustParsePrefix("fd83::/48")}
}

// A link joins one host to the router.
type link struct {
	router string // the interface's name in the router
	subnet [2]netip.Prefix
	near   [2]netip.Addr // the router's addresses, v4 and v6
	far    [2]netip.Addr // the host's
}

// newLink gives host number n (from 1) its addresses.
func newLink(n int, name string) link {
	var v6 [16]byte
	v6[0], v6[1], v6[7] = 0xfd, 0x83, byte(n)
	at := func(last byte) [2]netip.Addr {
		v6[15] = last
		return [2]netip.Addr{netip.AddrFrom4([4]byte{10, 83, byte(n), last}), netip.AddrFrom16(v6)}
	}
	l := link{router: "to-" + name, near: at(1), far: at(2)}
	l.subnet = [2]netip.Prefix{netip.PrefixFrom(l.far[0], 24).Masked(), netip.PrefixFrom(l.far[1], 64).Masked()}
	return l
}

// haveIPv6 reports whether the kernel has IPv6 at all; a lab without it has IPv4 only.
func haveIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// setSysctls writes per-namespace settings; it runs on a thread of that namespace.
func setSysctls(settings map[string]string) error {
	for name, value := range settings {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

// readyNetwork prepares the network namespace of the calling thread: lo up, addresses
// of new interfaces usable at once.
func readyNetwork() error {
	if haveIPv6() {
		err := setSysctls(map[string]string{
			"ipv6/conf/all/disable_ipv6":     "0", // some distributions switch it off for new namespaces
			"ipv6/conf/default/disable_ipv6": "0",
			"ipv6/conf/all/accept_dad":       "0", // nobody else is on the links: no wait for duplicates
			"ipv6/conf/default/accept_dad":   "0",
		})
		if err != nil {
			return err
		}
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.LinkSetUp(lo)
}

// readyRouter makes the namespace of the calling thread, prepared, a router.
func readyRouter() error {
	settings := map[string]string{"ipv4/ip_forward": "1"}
	if haveIPv6() {
		settings["ipv6/conf/all/forwarding"] = "1"
	}
	return setSysctls(settings)
}

// lay makes the link between the router and a host, up and with addresses on both ends.
func (l link) lay(router, host *space) error {
	err := router.do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		pair := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: l.router},
			PeerName:      hostInterface,
			PeerNamespace: netlink.NsFd(host.netns.Fd()),
		}
		if err := h.LinkAdd(pair); err != nil {
			return fmt.Errorf("veth pair: %w", err)
		}
		return bringUp(h, l.router, l.near, l.subnet)
	})
	if err != nil {
		return err
	}
	return host.do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		if err := bringUp(h, hostInterface, l.far, l.subnet); err != nil {
			return err
		}
		// No default route: what is not in the lab fails at once, by the host's own word.
		// The router's, an ICMP error, comes back on the same processor while connect still
		// holds the socket, and the kernel then waits for the next SYN's, a second later.
		for i, prefix := range Prefixes() {
			if prefix.Addr().Is6() && !haveIPv6() {
				continue
			}
			dst := &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
			if err := h.RouteAdd(&netlink.Route{Dst: dst, Gw: l.near[i].AsSlice()}); err != nil {
				return fmt.Errorf("route to %v by %v: %w", prefix, l.near[i], err)
			}
		}
		return nil
	})
}

// bringUp gives the named interface its addresses.
func bringUp(h *netlink.Handle, name string, addrs [2]netip.Addr, subnets [2]netip.Prefix) error {
	dev, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(dev); err != nil {
		return fmt.Errorf("%s up: %w", name, err)
	}
	for i, addr := range addrs {
		if addr.Is6() && !haveIPv6() {
			continue
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(subnets[i].Bits(), addr.BitLen())}}
		if addr.Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(dev, a); err != nil {
			return fmt.Errorf("address %v on %s: %w", addr, name, err)
		}
	}
	return nil
}

const (
	linkLimit     = 5 * time.Second
	linkPollFirst = time.Millisecond
	linkPollMost  = 50 * time.Millisecond
)

// awaitUp returns when both ends of the link send: until the kernel's link watcher has
// come by, packets are dropped, and a lost first SYN costs a second.
func (l link) awaitUp(ctx context.Context, router, host *space) error {
	ctx, cancel := context.WithTimeoutCause(ctx, linkLimit, fmt.Errorf("not up after %v", linkLimit))
	defer cancel()
	for _, end := range []struct {
		space *space
		name  string
	}{{router, l.router}, {host, hostInterface}} {
		for pause := linkPollFirst; ; pause = min(2*pause, linkPollMost) {
			var state netlink.LinkOperState
			err := end.space.do(func() error {
				h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
				if err != nil {
					return err
				}
				defer h.Close()
				dev, err := h.LinkByName(end.name)
				if err == nil {
					state = dev.Attrs().OperState
				}
				return err
			})
			if err != nil {
				return err
			}
			if state == netlink.OperUp {
				break
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return fmt.Errorf("%s: %w", end.name, context.Cause(ctx))
			}
		}
	}
	return nil
}
