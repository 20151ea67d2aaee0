//go:build linux

package routing

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"testing"
)

// underFilters runs f with each way of dropping packets that a host may have: strict
// and loose reverse path filters, and a firewall that drops what conntrack finds
// invalid.
func underFilters(t *testing.T, f func(t *testing.T, s *scene)) {
	t.Helper()
	s := newScene(t)
	run(t, "nft", `add table inet fw
		add chain inet fw in { type filter hook input priority 0; }
		add chain inet fw out { type filter hook output priority 0; }
		add chain inet fw through { type filter hook forward priority 0; }
		add rule inet fw in ct state invalid drop
		add rule inet fw out ct state invalid drop
		add rule inet fw through ct state invalid drop`)
	for _, rp := range []string{"0", "1", "2"} {
		t.Run("rp_filter="+rp, func(t *testing.T) {
			if err := conf(4, "all", "rp_filter").write(rp); err != nil {
				t.Fatal(err)
			}
			before := snapshot(t)
			s.apply(t, testConfig(t))
			f(t, s)
			s.tun.close()
			if err := s.host.Close(); err != nil {
				t.Error(err)
			}
			sameAs(t, before)
		})
	}
}

// S leaves under the address of the uplink, is not captured although port 80 is, and
// gets the answers.
func TestWireSideLeavesMasqueraded(t *testing.T) {
	if !inNetns(t) {
		return
	}
	port := uint16(5555)
	underFilters(t, func(t *testing.T, s *scene) {
		t.Helper()
		port++
		for _, p := range places {
			l := s.server.listen(at(p.server, 80))
			s.tun.send(at(p.s, port), at(p.server, 80), "S", 1, 0)
			synAck := s.tun.want(at(p.server, 80) + " > " + at(p.s, port) + " <S.>")
			s.tun.send(at(p.s, port), at(p.server, 80), ".", 2, tcpOf(synAck).Seq+1)
			if from := acceptOne(t, l); from != netip.MustParseAddrPort(at(p.host, port)) {
				t.Errorf("server sees %v, want %s", from, at(p.host, port))
			}
			s.tun.none("captured again")
			_ = l.Close()
		}
	})
}

// A refused connection of S is refused, not silent.
func TestWireSideHearsRefusal(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	s.apply(t, testConfig(t))
	for _, p := range places {
		s.tun.send(at(p.s, 5555), at(p.server, 80), "S", 1, 0)
		s.tun.want(at(p.server, 80) + " > " + at(p.s, 5555) + " <R.>")
	}
}

// A stack may also leave a new connection alone and write its packets back.
func TestWrittenBackConnectionPasses(t *testing.T) {
	if !inNetns(t) {
		return
	}
	port := uint16(3333)
	underFilters(t, func(t *testing.T, s *scene) {
		t.Helper()
		port++
		var flows []Flow
		for _, p := range places {
			flows = append(flows, Flow{Src: netip.MustParseAddrPort(at(p.host, port)), Dst: netip.MustParseAddrPort(at(p.server, 80))})
		}
		s.tun.reflect(flows)
		for _, p := range places {
			l := s.server.listen(at(p.server, 80))
			c := dial(t, nil, at(p.host, port), at(p.server, 80))
			far, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			near := <-c
			if near.err != nil {
				t.Fatal(near.err)
			}
			flowing(t, "written back", near.Conn, far)
			_, _, _ = near.Close(), far.Close(), l.Close()
		}
	})
}

func TestInboundGoesToStackAndIsDelivered(t *testing.T) {
	if !inNetns(t) {
		return
	}
	port := uint16(4444)
	underFilters(t, func(t *testing.T, s *scene) {
		t.Helper()
		port++
		for _, p := range places {
			inbound(t, s, p, port)
		}
	})
}

func inbound(t *testing.T, s *scene, p place, port uint16) {
	t.Helper()
	client := at(p.server, port)
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	// The remote dials the host, S answers in its name.
	c := dial(t, s.server, client, at(p.host, 80))
	syn := s.tun.want(client + " > " + at(p.s, 80) + " <S>")
	dialled, err := s.host.OriginalDst(netip.MustParseAddrPort(client), netip.MustParseAddrPort(at(p.s, 80)))
	if err != nil || dialled != netip.MustParseAddrPort(at(p.host, 80)) {
		t.Errorf("OriginalDst = %v, %v, want %s", dialled, err, at(p.host, 80))
	}
	if d, err := s.host.OriginalDst(netip.MustParseAddrPort(at(p.server, 1)), netip.MustParseAddrPort(at(p.s, 80))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OriginalDst of an unknown connection = %v, %v", d, err)
	}
	s.answer(syn)
	if c := <-c; c.err != nil {
		t.Errorf("remote: %v", c.err)
	}
	s.tun.want(client + " > " + at(p.s, 80) + " <.>")

	// The local leg has the client's own address.
	s.tun.send(client, at(p.h, 80), "S", 1, 0)
	synAck := s.tun.want(at(p.h, 80) + " > " + client + " <S.>")
	s.tun.send(client, at(p.h, 80), ".", 2, tcpOf(synAck).Seq+1)
	if from := acceptOne(t, l); from != netip.MustParseAddrPort(client) {
		t.Errorf("service sees %v, want the client %s", from, client)
	}

	// A client on the host reaches the service as ever.
	if c := <-dial(t, nil, "", at(p.host, 80)); c.err != nil {
		t.Errorf("local client: %v", c.err)
	}
	s.tun.none("local client")
}

// Ports without a rule, and services on them, are as ever.
func TestOtherInboundPortsAreLeftAlone(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	s.apply(t, testConfig(t))
	for _, p := range places {
		l, err := net.Listen("tcp", at(p.host, 81))
		if err != nil {
			t.Fatal(err)
		}
		if c := <-dial(t, s.server, "", at(p.host, 81)); c.err != nil {
			t.Error(c.err)
		}
		s.tun.none("port 81")
		_ = l.Close()
	}
}

// A rule for all ports covers the ports of clients, too. What they have opened must
// not be captured on the way back.
func TestAnswersToOthersAreNotCaptured(t *testing.T) {
	if !inNetns(t) {
		return
	}
	for _, policy := range []Policy{Opportunistic, Require} {
		t.Run(policy.String(), func(t *testing.T) {
			s := newScene(t)
			defer run(t, "ip", "link", "del", "up0")
			defer run(t, "ip", "link", "del", "lan0")
			c := testConfig(t)
			c.Outbound[0].Ports, c.Outbound[0].Policy = nil, policy
			if err := conf(4, "all", "forwarding").write("1"); err != nil {
				t.Fatal(err)
			}
			if err := conf(6, "all", "forwarding").write("1"); err != nil {
				t.Fatal(err)
			}
			s.apply(t, c)
			check := func(when string) {
				t.Helper()
				for _, p := range places {
					l, err := net.Listen("tcp", at(p.host, 2222))
					if err != nil {
						t.Fatal(err)
					}
					if c := <-dial(t, s.server, "", at(p.host, 2222)); c.err != nil {
						t.Errorf("%s: to this host: %v", when, c.err)
					}
					_ = l.Close()
					behind := s.neighbour.listen(at(p.neighbour, 2222))
					if c := <-dial(t, s.server, "", at(p.neighbour, 2222)); c.err != nil {
						t.Errorf("%s: through this host: %v", when, c.err)
					}
					_ = behind.Close()
				}
			}
			check("alive")
			s.tun.none("answers")
			if err := s.host.crash(); err != nil {
				t.Fatal(err)
			}
			s.tun.close()
			check("after a crash")
			if err := Clean(t.Context(), testLog(t)); err != nil {
				t.Fatal(err)
			}
			check("after Clean")
		})
	}
}

func TestLinkIsNotReachableFromOutside(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	s.apply(t, testConfig(t))
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, p := range places {
		for _, dst := range []string{p.h, p.s} {
			s.neighbour.ip("route", "add", dst, "dev", "nei0", "via", p.lan)
			if c := <-dialBriefly(t, s.neighbour, at(dst, 80)); c.err == nil {
				t.Errorf("neighbour reaches %s", dst)
			}
		}
		s.tun.none("the link is shut")
	}
}

func TestDoesNotBecomeARouter(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	s.apply(t, testConfig(t))
	for _, p := range places {
		l := s.server.listen(at(p.server, 81))
		_ = s.server.listen(at(p.server, 80))
		for _, port := range []uint16{80, 81} {
			if c := <-dialBriefly(t, s.neighbour, at(p.server, port)); c.err == nil {
				t.Errorf("neighbour reaches %v", l.Addr())
			}
		}
		s.tun.none("captured for a stranger")
	}
}

// A host that routes goes on routing, and captures for those behind it.
func TestCapturesForRoutedMachines(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	for _, v := range []int{4, 6} {
		if err := conf(v, "all", "forwarding").write("1"); err != nil {
			t.Fatal(err)
		}
	}
	s.apply(t, testConfig(t))
	// As a container host does.
	run(t, "nft", "add table ip docker; add chain ip docker post { type nat hook postrouting priority 100; }; add rule ip docker post ip saddr 10.2.0.0/16 masquerade")
	for _, p := range places {
		l := s.server.listen(at(p.server, 81))
		if c := <-dial(t, s.neighbour, "", at(p.server, 81)); c.err != nil {
			t.Errorf("routed as ever: %v", c.err)
		}
		acceptOne(t, l)
		c := dial(t, s.neighbour, at(p.neighbour, 3333), at(p.server, 80))
		s.answer(s.tun.want(at(p.neighbour, 3333) + " > " + at(p.server, 80) + " <S>"))
		if c := <-c; c.err != nil {
			t.Errorf("captured: %v", c.err)
		}
	}
}
