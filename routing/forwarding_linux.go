package routing

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forwarding switches routing on where our packets come in, and keeps the list of
// devices that would not route without us. It is told of every change of devices.
type forwarding struct {
	device  string
	sysctls *sysctls
	nat     *nat
	on      []int          // IP versions
	knob    map[int]string // the switch per device, by IP version; absent: only one for all
	closed  map[closedDevice]bool
}

type closedDevice struct {
	version int
	name    string
}

func newForwarding(c Config, s *sysctls, n *nat, oneSwitch bool) *forwarding {
	f := &forwarding{device: c.Interface, sysctls: s, nat: n, knob: map[int]string{}, closed: map[closedDevice]bool{}}
	if c.family(4).on() {
		f.on, f.knob[4] = append(f.on, 4), "forwarding" // IPv4 asks the device that a packet came in by
	}
	if c.family(6).on() {
		f.on = append(f.on, 6)
		// Since Linux 6.17. Before, only the switch for all devices lets packets pass, and
		// makes a router of the host also in how it treats router advertisements.
		if !oneSwitch && conf(6, "all", "force_forwarding").exists() {
			f.knob[6] = "force_forwarding"
		}
	}
	return f
}

// closing gives the IP versions in which forwarding is closed to strangers: by device,
// or by all devices.
func (f *forwarding) closing() (perDevice, all []int, err error) {
	for _, v := range f.on {
		if f.knob[v] != "" {
			perDevice = append(perDevice, v)
			continue
		}
		now, err := conf(v, "all", "forwarding").read()
		if err != nil {
			return nil, nil, err
		}
		if now == "0" { // else the host is a router without us
			all = append(all, v)
		}
	}
	return perDevice, all, nil
}

// deviceSettings are the sysctls of our own device, with which they go. They are made
// before it is up.
func (f *forwarding) deviceSettings() []setting {
	var all []setting
	set := func(v int, name, value string) {
		all = append(all, setting{path: conf(v, f.device, name), new: value})
	}
	if sysctlPath("net/ipv6").exists() {
		set(6, "addr_gen_mode", "1") // no link-local address, no chatter
	}
	for _, v := range f.on {
		switch v {
		case 4:
			set(4, "accept_local", "1") // what the stack writes back comes from this host
			// Strict would drop that again. The larger of this and the one for all devices
			// counts, and 2 is loose.
			set(4, "rp_filter", "2")
		case 6:
			set(6, "disable_ipv6", "0")
		}
		if knob := f.knob[v]; knob != "" {
			set(v, knob, "1")
		}
	}
	return all
}

func conf(version int, device, name string) sysctlPath {
	return sysctlPath(fmt.Sprintf("net/ipv%d/conf/%s/%s", version, device, name))
}

// start switches forwarding on, links being all devices.
func (f *forwarding) start(links []netlink.Link) error {
	if err := f.update(links); err != nil {
		return err
	}
	for _, v := range f.on {
		if f.knob[v] == "" {
			if err := f.allDevices(v, links); err != nil {
				return err
			}
		}
	}
	return nil
}

// allDevices is for kernels without a switch per device. Routers do not listen to
// router advertisements unless told to, and forget the default routes that they have
// from them at the moment they become routers: so first tell.
func (f *forwarding) allDevices(v int, links []netlink.Link) error {
	all := conf(v, "all", "forwarding")
	if now, err := all.read(); err != nil || now == "1" {
		return err
	}
	names := []string{"default"}
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	for _, n := range names {
		p := conf(v, n, "accept_ra")
		now, err := p.read()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && now == "1" {
			err = f.sysctls.set(p, "2")
		}
		if err != nil {
			return err
		}
	}
	// Restoring the one for all sets every device to 0, so those that are 1 now are noted
	// as if we had changed them, to be restored after it. Undone newest first: before.
	for _, n := range names {
		p := conf(v, n, "forwarding")
		if now, err := p.read(); err == nil && now == "1" {
			s := setting{p, "1", "0"}
			if err := f.sysctls.note(s); err != nil {
				return err
			}
			f.sysctls.done = append(f.sysctls.done, s)
		}
	}
	return f.sysctls.set(all, "1")
}

// update follows the devices that there are. A device that did not forward is closed
// to strangers first. If the host is made a router in general while we run, that is
// not because of us, and nothing is closed any more.
func (f *forwarding) update(links []netlink.Link) error {
	var errs error
	for _, v := range f.on {
		knob := f.knob[v]
		if knob == "" {
			continue
		}
		all, err := conf(v, "all", "forwarding").read()
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		if all == "1" {
			for d := range f.closed {
				if d.version == v {
					errs = errors.Join(errs, f.nat.setClosed(v, d.name, false))
					delete(f.closed, d)
				}
			}
			continue
		}
		for _, l := range links {
			errs = errors.Join(errs, f.add(v, l.Attrs(), knob))
		}
	}
	return errs
}

func (f *forwarding) add(v int, l *netlink.LinkAttrs, knob string) error {
	d := closedDevice{v, l.Name}
	if l.RawFlags&unix.IFF_LOOPBACK != 0 || l.RawFlags&unix.IFF_UP == 0 || l.Name == f.device || f.closed[d] {
		return nil
	}
	p := conf(v, l.Name, knob)
	now, err := p.read()
	if errors.Is(err, fs.ErrNotExist) || err == nil && now != "0" {
		return nil // the device has no part in this IP version, or it forwards anyhow
	}
	if err != nil {
		return err
	}
	if err := f.nat.setClosed(v, l.Name, true); err != nil {
		return err
	}
	f.closed[d] = true
	return f.sysctls.set(p, "1")
}

// letAnswersPass sets what the mark on arriving packets needs to have an effect; see
// guardChains.
func letAnswersPass(c Config, k *kernel, s *sysctls) error {
	if coversClients(c) {
		if err := s.set("net/ipv4/tcp_fwmark_accept", "1"); err != nil {
			return err
		}
	}
	if !c.family(4).on() || len(outboundPorts(c, Opportunistic, Require)) == 0 {
		return nil
	}
	links, err := k.nl.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		name := l.Attrs().Name
		strict, err := strictFilter(name)
		if err == nil && strict && l.Attrs().RawFlags&unix.IFF_LOOPBACK == 0 && name != c.Interface {
			err = s.set(conf(4, name, "src_valid_mark"), "1")
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// strictFilter reports whether the kernel drops packets that come in by another device
// than answers to them would leave by.
func strictFilter(device string) (bool, error) {
	all, err := conf(4, "all", "rp_filter").read()
	if err != nil {
		return false, err
	}
	own, err := conf(4, device, "rp_filter").read()
	return max(all, own) == "1", err
}
