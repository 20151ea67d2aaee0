//go:build linux

package routing

import (
	"net"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
)

// flow passes a byte each way.
func flowing(t *testing.T, what string, a, b net.Conn) {
	t.Helper()
	for _, c := range []struct{ from, to net.Conn }{{a, b}, {b, a}} {
		if _, err := c.from.Write([]byte("x")); err != nil {
			t.Errorf("%s: write: %v", what, err)
			return
		}
		if err := c.to.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.to.Read(make([]byte, 1)); err != nil {
			t.Errorf("%s: %v to %v: %v", what, c.from.LocalAddr(), c.from.RemoteAddr(), err)
			return
		}
	}
}

// pair is a connection and its other end.
func pair(t *testing.T, from *netNS, l net.Listener) (near, far net.Conn) {
	t.Helper()
	c := dial(t, from, "", l.Addr().String())
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	d := <-c
	if d.err != nil {
		t.Fatal(d.err)
	}
	return d.Conn, far
}

// reflect writes back what belongs to one of the flows, as a stack does, and gives
// what else there is to the test.
func (d *tunDevice) reflect(flows []Flow) {
	in := d.packets
	d.packets = make(chan gopacket.Packet, 1024)
	out := d.packets
	ended, readEnded := make(chan struct{}), d.ended
	d.ended = ended
	go func() {
		defer close(ended)
		defer close(out)
		for p := range in {
			src, dst := endsOf(p)
			if slices.ContainsFunc(flows, func(f Flow) bool { return f.Src == src && f.Dst == dst }) {
				_, _ = d.file.Write(p.Data())
				continue
			}
			out <- p
		}
		<-readEnded
	}()
}

func TestExistingConnectionsSurvive(t *testing.T) {
	if !inNetns(t) {
		return
	}
	for _, strict := range []string{"0", "1", "2"} {
		for _, tracked := range []bool{false, true} {
			name := "rp_filter=" + strict
			if tracked {
				name += "/conntrack"
			}
			t.Run(name, func(t *testing.T) {
				s := newScene(t)
				defer run(t, "ip", "link", "del", "lan0")
				defer run(t, "ip", "link", "del", "up0")
				if err := conf(4, "all", "rp_filter").write(strict); err != nil {
					t.Fatal(err)
				}
				if tracked { // by a firewall or Docker, before we come
					run(t, "nft", "add table inet fw; add chain inet fw in { type filter hook input priority 0; }; add rule inet fw in ct state established accept")
					defer run(t, "nft", "delete table inet fw")
				}
				type existing struct{ near, far net.Conn }
				var outbound, inbound []existing
				for _, p := range places {
					near, far := pair(t, nil, s.server.listen(at(p.server, 80)))
					outbound = append(outbound, existing{near, far})
					l, err := net.Listen("tcp", at(p.host, 22))
					if err != nil {
						t.Fatal(err)
					}
					defer func() { _ = l.Close() }()
					far, near = pair(t, s.server, l)
					inbound = append(inbound, existing{near, far})
				}
				before := snapshot(t)
				c := testConfig(t)
				c.Outbound[0].Ports = ports(t, "80", "1024-65535") // answers to clients, too
				s.apply(t, c)
				flows, err := s.host.Existing(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range outbound {
					want := Flow{Src: addrPort(e.near.LocalAddr()), Dst: addrPort(e.near.RemoteAddr())}
					if !slices.Contains(flows, want) {
						t.Errorf("Existing has no %v, but %v", want, flows)
					}
				}
				s.tun.reflect(flows)
				for range 2 {
					for _, e := range outbound {
						flowing(t, "outbound", e.near, e.far)
					}
					for _, e := range inbound {
						flowing(t, "inbound", e.near, e.far)
					}
				}
				s.tun.none("only flows that are there already")
				if err := s.host.Close(); err != nil {
					t.Error(err)
				}
				s.tun.close()
				sameAs(t, before)
				for _, e := range slices.Concat(outbound, inbound) {
					flowing(t, "after the stop", e.near, e.far)
				}
			})
		}
	}
}

// A container's connection that the host masquerades, and one that it does not.
func TestExistingRoutedConnectionsSurvive(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	for _, v := range []int{4, 6} {
		if err := conf(v, "all", "forwarding").write("1"); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "nft", "add table inet docker; add chain inet docker post { type nat hook postrouting priority 100; }; add rule inet docker post ip saddr 10.2.0.0/16 oifname up0 masquerade")
	var near, far []net.Conn
	for _, p := range places {
		a, b := pair(t, s.neighbour, s.server.listen(at(p.server, 80)))
		near, far = append(near, a), append(far, b)
	}
	s.apply(t, testConfig(t))
	flows, err := s.host.Existing(t.Context())
	if err != nil || len(flows) != len(near) {
		t.Errorf("Existing = %v, %v, want %d", flows, err, len(near))
	}
	for i := range near {
		flowing(t, "alive", near[i], far[i])
	}
	s.die(t)
	for i := range near {
		flowing(t, "after a crash", near[i], far[i])
	}
}

// Under Require an existing connection in clear is listed as such and does not pass
// by the device.
func TestExistingUnderRequireComesIntoTheDevice(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	run(t, "nft", "add table inet fw; add chain inet fw in { type filter hook input priority 0; }; add rule inet fw in ct state established accept")
	c := testConfig(t)
	var near []net.Conn
	for _, p := range places {
		a, _ := pair(t, nil, s.server.listen(at(p.server, 80)))
		near = append(near, a)
	}
	// Seen as Opportunistic first, and marked so.
	s.apply(t, c)
	if _, err := s.host.Existing(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.die(t)
	c.Outbound[0].Policy = Require
	s.apply(t, c)
	flows, err := s.host.Existing(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range places {
		want := Flow{Src: addrPort(near[i].LocalAddr()), Dst: addrPort(near[i].RemoteAddr()), Policy: Require}
		if !slices.Contains(flows, want) {
			t.Errorf("Existing has no %v, but %v", want, flows)
		}
		if _, err := near[i].Write([]byte("x")); err != nil {
			t.Error(err)
		}
		s.tun.want("* > " + at(p.server, 80) + " <P.>")
	}
}
