package routing

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Check reports what would make Apply fail, as far as it can be known without
// changing anything: a live instance (ErrRunning), a taken device name, address,
// priority or table (ErrTaken), missing permission (os.ErrPermission) or kernel
// features. Call it before the device is opened. The error is an *Error.
func Check(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	k, err := openKernel()
	if err != nil {
		return err
	}
	defer k.close()
	if err := k.checkApply(c); err != nil {
		return err
	}
	_, err = k.nl.LinkByName(c.Interface)
	switch {
	case err == nil:
		return &Error{What: fmt.Sprintf("create the device %s", c.Interface), Err: fmt.Errorf("the name is %w", ErrTaken),
			Fix: "choose another interface.name, or remove the device: ip link delete " + c.Interface}
	case !errors.As(err, new(netlink.LinkNotFoundError)):
		return &Error{What: "list the devices", Err: err, Fix: fix(err)}
	}
	return ctx.Err()
}

func (k *kernel) checkApply(c Config) error {
	if err := k.checkAlone(); err != nil {
		return err
	}
	if c.family(6).on() && !k.ipv6 {
		return &Error{What: "use IPv6", Err: errors.New("this network namespace has none"),
			Fix: "leave out host6, stack6 and IPv6 prefixes, or set net.ipv6.conf.all.disable_ipv6=0"}
	}
	for _, check := range []func(Config) error{k.checkRules, k.checkTable, k.checkAddresses, checkRequirePorts} {
		if err := check(c); err != nil {
			return err
		}
	}
	return nil
}

// checkAlone also finds out whether we may do all this: the kernel answers no
// question about nftables without CAP_NET_ADMIN in the owner of the namespace.
func (k *kernel) checkAlone() error {
	owner, found, err := findTable(ownedTable)
	switch {
	case err != nil:
		return &Error{What: "use nftables", Err: err, Fix: fix(err)}
	case found && owner != 0:
		who := ""
		if pid := processOf(owner); pid != 0 {
			who = fmt.Sprintf(" as process %d", pid)
		}
		return &Error{What: "start", Err: fmt.Errorf("%w%s", ErrRunning, who), Fix: "stop it first"}
	case found:
		return &Error{What: "start", Err: fmt.Errorf("the nftables table %s is %w", ownedTable, ErrTaken),
			Fix: "if nobody needs it: nft delete table inet " + ownedTable}
	}
	return nil
}

func (k *kernel) checkRules(Config) error {
	rules, err := k.rules()
	if err != nil {
		return err
	}
	for _, v := range k.versions() {
		if !slices.ContainsFunc(rules, func(r netlink.Rule) bool {
			return r.Family == afOf(v) && r.Table == unix.RT_TABLE_LOCAL && r.Priority < slot0
		}) {
			return &Error{What: "put our routing rules behind those for local addresses",
				Err: fmt.Errorf("no IPv%d rule below priority %d looks up the table local", v, slot0),
				Fix: fmt.Sprintf("ip -%d rule add priority 0 lookup local", v)}
		}
	}
	for _, r := range rules {
		if r.Priority >= slot0 && r.Priority < slot1+slotSize && !ours(r) {
			return &Error{What: "add routing rules", Err: fmt.Errorf("priority %d is %w", r.Priority, ErrTaken),
				Fix: fmt.Sprintf("move the rule away from priorities %d to %d", slot0, slot1+slotSize-1)}
		}
	}
	return nil
}

func (k *kernel) checkTable(Config) error {
	for _, v := range k.versions() {
		routes, err := retryDump(func() ([]netlink.Route, error) {
			return k.nl.RouteListFiltered(afOf(v), &netlink.Route{Table: tableID}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return &Error{What: "list the routes", Err: err, Fix: fix(err)}
		}
		if len(routes) > 0 {
			return &Error{What: "add a routing table", Err: fmt.Errorf("table %d is %w", tableID, ErrTaken),
				Fix: fmt.Sprintf("if nobody needs its routes: ip -%d route flush table %d", v, tableID)}
		}
	}
	return nil
}

func (k *kernel) checkAddresses(c Config) error {
	for _, v := range k.versions() {
		f := c.family(v)
		if !f.on() {
			continue
		}
		addrs, err := k.addresses(v)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			for _, mine := range []netip.Addr{f.host, f.stack} {
				if a.Bits() > 0 && a.Contains(mine) {
					return &Error{What: fmt.Sprintf("use the address %v", mine),
						Err: fmt.Errorf("its network is %w: this host has the address %v", ErrTaken, a),
						Fix: fmt.Sprintf("choose host%d and stack%d from a network that nobody uses", v, v)}
				}
			}
		}
	}
	return nil
}

// addresses are all addresses of this host, with their networks.
func (k *kernel) addresses(v int) ([]netip.Prefix, error) {
	list, err := retryDump(func() ([]netlink.Addr, error) { return k.nl.AddrList(nil, afOf(v)) })
	if err != nil {
		return nil, &Error{What: "list the addresses", Err: err, Fix: fix(err)}
	}
	var all []netip.Prefix
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			bits, _ := a.Mask.Size()
			all = append(all, netip.PrefixFrom(ip.Unmap(), bits))
		}
	}
	return all, nil
}

// checkRequirePorts refuses services under Require on ports that the kernel hands out
// to outgoing connections: closing them closes those, too.
func checkRequirePorts(c Config) error {
	_, closed := inboundPorts(c.Inbound)
	if len(closed) == 0 {
		return nil
	}
	dynamic, err := dynamicPorts()
	if err != nil {
		return &Error{What: "read the range of ports for outgoing connections", Err: err}
	}
	for _, r := range closed {
		for _, d := range dynamic {
			if lo, hi := max(r.First, d.First), min(r.Last, d.Last); lo <= hi {
				p := PortRange{lo, hi}
				return &Error{What: fmt.Sprintf("require encryption for inbound port %v", p),
					Err: errors.New("the kernel gives it to outgoing connections"),
					Fix: fmt.Sprintf("add it to the list of net.ipv4.ip_local_reserved_ports, for example: sysctl net.ipv4.ip_local_reserved_ports=%v", p)}
			}
		}
	}
	return nil
}

// dynamicPorts are the ports of outgoing connections, reserved ones taken out.
func dynamicPorts() ([]PortRange, error) {
	text, err := sysctlPath("net/ipv4/ip_local_port_range").read()
	if err != nil {
		return nil, err
	}
	r, err := ParsePortRange(strings.Join(strings.Fields(text), "-"))
	if err != nil {
		return nil, err
	}
	text, err = sysctlPath("net/ipv4/ip_local_reserved_ports").read()
	if err != nil {
		return nil, err
	}
	var reserved []PortRange
	for s := range strings.SplitSeq(text, ",") {
		if s == "" {
			continue
		}
		one, err := ParsePortRange(s)
		if err != nil {
			return nil, err
		}
		reserved = append(reserved, one)
	}
	return subtract([]PortRange{r}, reserved), nil
}

// processOf finds the process that owns a netlink socket, 0 if it is not to be found.
// It is for a message only.
func processOf(port uint32) int {
	f, err := os.Open("/proc/thread-self/net/netlink")
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }() // read only
	inode := ""
	for s := bufio.NewScanner(f); s.Scan(); {
		// sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		w := strings.Fields(s.Text())
		if len(w) >= 10 && w[1] == strconv.Itoa(unix.NETLINK_NETFILTER) && w[2] == strconv.FormatUint(uint64(port), 10) {
			inode = w[9]
		}
	}
	if inode == "" {
		return 0
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == "socket:["+inode+"]" {
			pid, _ := strconv.Atoi(strings.Split(fd, "/")[2]) // it matched [0-9]*
			return pid
		}
	}
	return 0
}
