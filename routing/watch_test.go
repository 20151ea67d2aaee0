//go:build linux

package routing

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// eventually waits for what the watcher does after the kernel has told it.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not so: %s", what)
		}
	}
}

func TestWireMTUFollowsTheUplinks(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	s.apply(t, testConfig(t))
	mtu := func(dst string) uint32 { return s.host.WireMTU(netip.MustParseAddr(dst)) }
	for _, p := range places {
		if m := mtu(p.server); m != 1500 {
			t.Errorf("WireMTU(%s) = %d, want 1500", p.server, m)
		}
	}
	run(t, "ip", "link", "set", "up0", "mtu", "1400")
	run(t, "ip", "link", "set", "lan0", "mtu", "1300")
	for _, p := range places {
		eventually(t, "1400 to "+p.server, func() bool { return mtu(p.server) == 1400 })
		eventually(t, "1300 to "+p.neighbour, func() bool { return mtu(p.neighbour) == 1300 })
	}
	// No way there: what all ways can take.
	if m := mtu("192.0.2.1"); m != 1300 {
		t.Errorf("WireMTU without a route = %d, want 1300", m)
	}
	// The route knows better than the link.
	run(t, "ip", "route", "add", "192.0.2.0/24", "via", "10.1.0.2", "mtu", "1280")
	if m := mtu("192.0.2.1"); m != 1280 {
		t.Errorf("WireMTU with mtu on the route = %d, want 1280", m)
	}
	if m := mtu("::ffff:192.0.2.1"); m != 1280 {
		t.Errorf("WireMTU of a mapped address = %d, want 1280", m)
	}
}

// A device that comes later forwards for us, and not for strangers.
func TestLaterDevice(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	s.apply(t, testConfig(t))
	late := newNS(t, "late")
	join(t, end{nil, "late0", []string{"10.3.0.1/16", "fd03::1/64"}}, end{late, "lat0", []string{"10.3.0.2/16", "fd03::2/64"}})
	late.ip("route", "add", "default", "via", "10.3.0.1")
	late.ip("route", "add", "default", "via", "fd03::1")
	for _, v := range []struct {
		version int
		knob    string
	}{{4, "forwarding"}, {6, "force_forwarding"}} {
		if !conf(v.version, "all", v.knob).exists() {
			continue
		}
		eventually(t, v.knob+" on late0", func() bool {
			now, err := conf(v.version, "late0", v.knob).read()
			return err == nil && now == "1"
		})
	}
	for _, p := range []place{{host: "10.3.0.1", neighbour: "10.3.0.2", server: "10.1.0.2", s: s4}, {host: "fd03::1", neighbour: "fd03::2", server: "fd01::2", s: s6}} {
		c := dial(t, late, at(p.neighbour, 4444), at(p.host, 80))
		s.answer(s.tun.want(at(p.neighbour, 4444) + " > " + at(p.s, 80) + " <S>"))
		if c := <-c; c.err != nil {
			t.Errorf("inbound by a later device: %v", c.err)
		}
		s.server.listen(at(p.server, 81))
		if c := <-dialBriefly(t, late, at(p.server, 81)); c.err == nil {
			t.Error("routed for a stranger behind a later device")
		}
	}
}

// Docker, say, is started after us and makes a router of the host.
func TestRouterForAnotherReason(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	before := snapshot(t)
	s.apply(t, testConfig(t))
	for _, p := range places {
		s.server.listen(at(p.server, 81))
	}
	for _, v := range []int{4, 6} {
		if err := conf(v, "all", "forwarding").write("1"); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range places {
		eventually(t, "routed for "+p.neighbour, func() bool { return (<-dialBriefly(t, s.neighbour, at(p.server, 81))).err == nil })
	}
	s.tun.close()
	if err := s.host.Close(); err != nil {
		t.Error(err)
	}
	// Still a router, and when that ends, all is as before.
	for _, p := range places {
		if c := <-dialBriefly(t, s.neighbour, at(p.server, 81)); c.err != nil {
			t.Errorf("after our stop: %v", c.err)
		}
	}
	for _, v := range []int{4, 6} {
		if err := conf(v, "all", "forwarding").write("0"); err != nil {
			t.Fatal(err)
		}
	}
	sameAs(t, before)
}

// Kernels before 6.17 have one switch of IPv6 forwarding for all devices, and a
// router does not listen to router advertisements.
func TestForwardingWithoutSwitchPerDevice(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	for p, v := range map[sysctlPath]string{
		conf(6, "lan0", "forwarding"): "1", conf(6, "lan0", "accept_ra"): "1",
		conf(6, "up0", "accept_ra"): "1", conf(6, "default", "accept_ra"): "0",
	} {
		if err := p.write(v); err != nil {
			t.Fatal(err)
		}
	}
	before := snapshot(t)
	for _, stop := range []string{"Close", "crash and Clean"} {
		s.applyTrial(t, testConfig(t), trial{oneSwitch: true})
		for p, want := range map[sysctlPath]string{
			conf(6, "all", "forwarding"): "1", conf(6, "up0", "forwarding"): "1",
			conf(6, "up0", "accept_ra"): "2", conf(6, "lan0", "accept_ra"): "2", conf(6, "default", "accept_ra"): "0",
		} {
			if v, err := p.read(); err != nil || v != want {
				t.Errorf("%s = %q, %v, want %s", p, v, err, want)
			}
		}
		p := places[1]
		s.tun.send(at(p.s, 5555), at(p.server, 80), "S", 1, 0)
		s.tun.want(at(p.server, 80) + " > " + at(p.s, 5555) + " <R.>")
		l := s.server.listen(at(p.server, 81))
		if c := <-dialBriefly(t, s.neighbour, at(p.server, 81)); c.err == nil {
			t.Error("routed for a stranger")
		}
		_ = l.Close()
		if stop == "Close" {
			if err := s.host.Close(); err != nil {
				t.Error(err)
			}
			s.tun.close()
		} else {
			s.die(t)
			if err := Clean(t.Context(), testLog(t)); err != nil {
				t.Error(err)
			}
		}
		sameAs(t, before)
	}
	// A host that is a router in any case goes on being one, for everybody.
	if err := conf(6, "all", "forwarding").write("1"); err != nil {
		t.Fatal(err)
	}
	s.applyTrial(t, testConfig(t), trial{oneSwitch: true})
	s.server.listen(at(places[1].server, 81))
	if c := <-dial(t, s.neighbour, "", at(places[1].server, 81)); c.err != nil {
		t.Errorf("router: %v", c.err)
	}
}

func TestListening(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	s.apply(t, testConfig(t))
	type socket struct {
		network, addr, device string
		v6only                bool
	}
	client := map[int]netip.AddrPort{4: netip.MustParseAddrPort("10.1.0.2:4444"), 6: netip.MustParseAddrPort("[fd01::2]:4444")}
	for _, w := range []struct {
		socket socket
		v4, v6 bool
	}{
		{socket{"tcp4", "0.0.0.0:80", "", false}, true, false},
		{socket{"tcp6", "[::]:80", "", false}, true, true},
		{socket{"tcp6", "[::]:80", "", true}, false, true},
		{socket{"tcp4", at(h4, 80), "", false}, true, false},
		{socket{"tcp6", at(h6, 80), "", false}, false, true},
		{socket{"tcp4", "127.0.0.1:80", "", false}, false, false},
		{socket{"tcp6", "[::1]:80", "", false}, false, false},
		{socket{"tcp4", "10.1.0.1:80", "", false}, false, false},
		{socket{"tcp4", "0.0.0.0:80", "up0", false}, false, false},
		{socket{"tcp4", "0.0.0.0:80", "tct0", false}, true, false},
		{socket{"tcp4", "0.0.0.0:81", "", false}, false, false},
	} {
		closeSocket := listenSocket(t, w.socket.network, w.socket.addr, w.socket.device, w.socket.v6only)
		for v, want := range map[int]bool{4: w.v4, 6: w.v6} {
			if got, err := s.host.Listening(80, client[v]); err != nil || got != want {
				t.Errorf("%+v: Listening for IPv%d = %v, %v, want %v", w.socket, v, got, err, want)
			}
		}
		closeSocket()
	}
	// A client's connection that is in TIME_WAIT or lives does not hide the listener.
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	s.tun.send("10.1.0.2:4444", at(h4, 80), "S", 1, 0)
	synAck := s.tun.want(at(h4, 80) + " > * <S.>")
	s.tun.send("10.1.0.2:4444", at(h4, 80), ".", 2, tcpOf(synAck).Seq+1)
	acceptOne(t, l)
	if got, err := s.host.Listening(80, client[4]); err != nil || !got {
		t.Errorf("with a connection of the same client: %v, %v", got, err)
	}
}

func listenSocket(t *testing.T, network, addr, device string, v6only bool) (closeIt func()) {
	t.Helper()
	a := netip.MustParseAddrPort(addr)
	af := unix.AF_INET
	var sa unix.Sockaddr
	if network == "tcp6" {
		af, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	} else {
		sa = &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	fd, err := unix.Socket(af, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil && device != "" {
		err = unix.BindToDevice(fd, device)
	}
	if err == nil && network == "tcp6" {
		only := 0
		if v6only {
			only = 1
		}
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
	}
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		t.Fatal(os.NewSyscallError("listen", err))
	}
	return func() { _ = unix.Close(fd) }
}
