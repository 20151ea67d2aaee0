package routing

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"time"

	mdl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// gone reports an error that means that what is to be removed does not exist.
func gone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL) ||
		errors.Is(err, unix.ENOENT) || errors.As(err, new(netlink.LinkNotFoundError))
}

func unlessGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}

// linkChanges are the steps that bring the link up: MTU, addresses, a route to S and
// our table. They go with the device.
func (k *kernel) linkChanges(l netlink.Link, c Config) []change {
	name, index, wasMTU := l.Attrs().Name, l.Attrs().Index, l.Attrs().MTU
	var cs []change
	if c.MTU != 0 && c.MTU != wasMTU {
		cs = append(cs, change{
			what: fmt.Sprintf("set the MTU of %s to %d", name, c.MTU),
			do:   func() error { return k.nl.LinkSetMTU(l, c.MTU) },
			undo: func() error { return unlessGone(k.nl.LinkSetMTU(l, wasMTU)) },
		})
	}
	cs = append(cs, change{
		what: fmt.Sprintf("bring up %s", name),
		do:   func() error { return k.nl.LinkSetUp(l) },
		undo: func() error { return unlessGone(k.nl.LinkSetDown(l)) },
	})
	for _, v := range []int{4, 6} {
		f := c.family(v)
		if !f.on() {
			continue
		}
		addr := hostAddress(v, f.host)
		cs = append(cs, change{
			what: fmt.Sprintf("give %s the address %v", name, f.host),
			do:   func() error { return k.addAddress(l, addr) },
			undo: func() error { return unlessGone(k.nl.AddrDel(l, addr)) },
		})
		toStack := &netlink.Route{LinkIndex: index, Dst: ipNet(single(f.stack)), Table: unix.RT_TABLE_MAIN, Protocol: protocol, Family: afOf(v)}
		in := &netlink.Route{LinkIndex: index, Dst: defaultNet(v), Table: tableID, Protocol: protocol, Family: afOf(v)}
		if v == 4 {
			toStack.Scope, in.Scope = netlink.SCOPE_LINK, netlink.SCOPE_LINK
		}
		cs = append(cs,
			k.routeChange(fmt.Sprintf("route %v into %s", f.stack, name), toStack),
			k.routeChange(fmt.Sprintf("add routing table %d for IPv%d", tableID, v), in))
	}
	return cs
}

func (k *kernel) routeChange(what string, r *netlink.Route) change {
	return change{
		what: what,
		do:   func() error { return k.nl.RouteAdd(r) },
		undo: func() error { return unlessGone(k.nl.RouteDel(r)) },
	}
}

// addressPatience bounds how long an IPv6 address may take to be one.
const addressPatience = 5 * time.Second

// addAddress returns when packets to the address are delivered. The kernel makes the
// local route of an IPv6 address some time after it has said yes, also without
// duplicate address detection; until then they would go back out of the device.
func (k *kernel) addAddress(l netlink.Link, a *netlink.Addr) (err error) {
	if a.IP.To4() != nil {
		return k.nl.AddrAdd(l, a)
	}
	const routes = 11 // RTNLGRP_IPV6_ROUTE
	news, err := mdl.Dial(unix.NETLINK_ROUTE, &mdl.Config{Groups: 1 << (routes - 1)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, news.Close()) }()
	if err := news.SetReadDeadline(time.Now().Add(addressPatience)); err != nil {
		return err
	}
	if err := k.nl.AddrAdd(l, a); err != nil {
		return err
	}
	for {
		rs, err := k.nl.RouteGet(a.IP)
		if err == nil && len(rs) > 0 && rs[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if _, err := news.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return errors.Join(err, unlessGone(k.nl.AddrDel(l, a)))
		}
	}
}

func defaultNet(version int) *net.IPNet {
	if version == 4 {
		return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

// hostAddress is H, hidden from the choice of source addresses: by its scope in
// IPv4, by being deprecated in IPv6. So programs keep the host's real address.
func hostAddress(version int, h netip.Addr) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(single(h)), Scope: int(netlink.SCOPE_HOST)}
	if version == 6 {
		a.Scope = int(netlink.SCOPE_UNIVERSE)
		a.Flags = unix.IFA_F_NODAD
		a.ValidLft, a.PreferedLft = int(min(uint64(math.MaxUint32), uint64(math.MaxInt))), 0 // for ever
	}
	return a
}
