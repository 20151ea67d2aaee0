package routing

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A kernel is the way to the network namespace that it was opened in.
type kernel struct {
	nl   *netlink.Handle
	ipv6 bool
}

func openKernel() (*kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, &Error{What: "open a routing socket", Err: err, Fix: fix(err)}
	}
	return &kernel{nl: h, ipv6: IPv6()}, nil
}

func (k *kernel) close() { k.nl.Close() }

func (k *kernel) versions() []int {
	if k.ipv6 {
		return []int{4, 6}
	}
	return []int{4}
}

// fix says what a user can do about err, which came from the kernel.
func fix(err error) string {
	switch {
	case errors.Is(err, os.ErrPermission):
		return "run it as root or with CAP_NET_ADMIN"
	case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EPROTONOSUPPORT):
		return "load or enable the kernel's nf_tables, nf_conntrack_netlink and tcp_diag"
	case errors.Is(err, unix.EOPNOTSUPP):
		return "use a kernel of at least version 5.12 with nf_tables, NAT and fib expressions"
	}
	return ""
}

// link finds the device, and says what is wrong if it is not there.
func (k *kernel) link(name string) (netlink.Link, error) {
	l, err := k.nl.LinkByName(name)
	if err != nil {
		return nil, &Error{What: fmt.Sprintf("use the device %s", name), Err: err, Fix: fix(err)}
	}
	return l, nil
}

// IPv6 reports whether this network namespace has IPv6. Where it has not, leave
// Host6 and Stack6 of the Config zero.
func IPv6() bool {
	off, err := sysctlPath("net/ipv6/conf/all/disable_ipv6").read()
	return err == nil && off == "0"
}
