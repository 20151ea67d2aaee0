package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// What strangers on the network can make of a host that runs the daemon, and what
// happens when its way out is odd.

// A SYN costs its sender nothing: only the ACK that answers our SYN-ACK proves an
// address, and until then the service hears nothing.
func TestForgedSYNsNeverReachTheService(t *testing.T) {
	t.Parallel()
	in := newInbound(t, everything(opportunistic, ""))
	const forged = 300
	answered := make(chan struct{}, forged)
	for i := range forged {
		_, err := in.peers.Open(netip.AddrPortFrom(peerAddr(i%2 == 1, 9), 0), netip.AddrPortFrom(in.b.addr(i%2 == 1), 80), wirepeer.Script{
			ENO: wirepeer.Config{}.Offer(),
			In: func(s *wirepeer.Segment) bool {
				if s.Flags.Has(wirepeer.SYN | wirepeer.ACK) {
					select {
					case answered <- struct{}{}:
					default:
					}
				}
				return false
			},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	<-answered
	app, s := in.encrypted(t, wirepeer.Script{}, wirepeer.Config{})
	if got := addrPort(app.RemoteAddr()); got != s.Conn.Local() {
		t.Errorf("the service got a connection from %v, want the one from %v alone", got, s.Conn.Local())
	}
}

func TestClosedPortAnswersRSTToTheSYN(t *testing.T) {
	t.Parallel()
	in := newInbound(t, everything(opportunistic, ""))
	// A service that listens on loopback only is not reachable from outside either.
	var loopback net.Listener
	err := inNamespace(in.b.netns, func() (err error) {
		loopback, err = net.Listen("tcp", "127.0.0.1:82")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(loopback)
	for _, f := range families {
		for _, port := range []uint16{81, 82} {
			at := netip.AddrPortFrom(in.b.addr(f.v6), port)
			if _, err := in.peers.Dial(soon(t), netip.AddrPortFrom(peerAddr(f.v6, 1), 0), at, wirepeer.Script{ENO: wirepeer.Config{}.Offer()}); !errors.Is(err, wirepeer.ErrRefused) {
				t.Errorf("%v: %v, want %v", at, err, wirepeer.ErrRefused)
			}
		}
	}
}

// Clients use a port again while the old connection is in TIME_WAIT here.
func TestPortsAreUsedAgainAtOnce(t *testing.T) {
	t.Parallel()
	t.Run("by a remote client", func(t *testing.T) {
		t.Parallel()
		in := newInbound(t, everything(opportunistic, ""))
		local := netip.AddrPortFrom(peerAddr(false, 1), 12345)
		for range 50 {
			peer, err := in.peers.Dial(soon(t), local, netip.AddrPortFrom(in.b.Addr4(), 80), wirepeer.Script{ENO: wirepeer.Config{}.Offer()})
			if err != nil {
				t.Fatal(err)
			}
			s, err := wirepeer.Handshake(soon(t), peer, wirepeer.Config{})
			if err != nil {
				t.Fatal(err)
			}
			app := accept(t, in.service)
			if err := app.Close(); err != nil { // this side ends first, and has TIME_WAIT
				t.Fatal(err)
			}
			if _, err := s.ReadData(soon(t), -1); err != nil {
				t.Fatal(err)
			}
			// The next SYN is right behind our FIN: the local leg may not have ended yet.
			s.Send(wirepeer.Frame{FIN: true})
			peer.Forget()
		}
	})
	t.Run("by a program", func(t *testing.T) {
		t.Parallel()
		n := newNetwork(t, networkOptions{})
		n.daemons(t)
		l := n.b.listen(t, 80)
		from := netip.AddrPortFrom(n.a.Addr4(), 12345)
		for range 5 {
			var client *net.TCPConn
			eventually(t, "the kernel lets go of the port", func() (err error) {
				client, err = n.a.dialFrom(soon(t), from, netip.AddrPortFrom(n.b.Addr4(), 80))
				if err != nil && !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EADDRNOTAVAIL) {
					t.Fatal(err)
				}
				return err
			})
			setDeadline(t, client)
			server := accept(t, l)
			if err := server.Close(); err != nil {
				t.Fatal(err)
			}
			mustEnd(t, "client", client)
			if err := client.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// H and S are of the host alone: neighbours who route there find nobody.
func TestLinkAddressesAreNotReachableFromOutside(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	n.b.up(t, everything(opportunistic, ""))
	server := n.b.serveTransfers(t, 80)
	for prefix, family := range map[string]string{"198.18.0.0/30": "-4", "fd74:6370:6372::/126": "-6"} {
		n.a.run(t, "ip", family, "route", "add", prefix, "via", map[string]string{"-4": "10.83.1.1", "-6": "fd83:0:0:1::1"}[family])
		via := map[string]string{"-4": "10.83.2.2", "-6": "fd83:0:0:2::2"}[family]
		if err := inNamespace(n.router, func() error { return runHere("ip", family, "route", "add", prefix, "via", via) }); err != nil {
			t.Fatal(err)
		}
	}
	// Neither answers: as many silent dials as addresses, all at once.
	n.a.run(t, "sysctl", "-qw", "net.ipv4.tcp_syn_retries=1")
	addrs := []string{"198.18.0.1:80", "198.18.0.2:80", "[fd74:6370:6372::1]:80", "[fd74:6370:6372::2]:80"}
	errs := make(chan error, len(addrs))
	for _, a := range addrs {
		go func() {
			c, err := n.a.dial(soon(t), netip.MustParseAddrPort(a))
			if err == nil {
				_ = c.Close()
				errs <- fmt.Errorf("%s: connected", a)
				return
			}
			errs <- nil
		}()
	}
	for range addrs {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got := server.clients(); len(got) > 0 {
		t.Errorf("the service was reached from %v", got)
	}
}

// Forwarding is switched on for our own flows: others still find no router.
func TestHostDoesNotBecomeARouter(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{capture: true})
	n.b.up(t, everything(opportunistic, ""))
	n.a.run(t, "sysctl", "-qw", "net.ipv4.tcp_syn_retries=1")
	for family, via := range map[string][2]string{"-4": {"10.83.240.0/24", "10.83.2.2"}, "-6": {"fd83:0:0:f0::/64", "fd83:0:0:2::2"}} {
		if err := inNamespace(n.router, func() error { return runHere("ip", family, "route", "add", via[0], "via", via[1]) }); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range []string{"10.83.240.9:999", "[fd83:0:0:f0::9]:999"} {
		if c, err := n.a.dial(soon(t), netip.MustParseAddrPort(a)); err == nil {
			_ = c.Close()
			t.Errorf("%s: connected", a)
		}
	}
	n.finish(t)
	seen := make(map[string]int) // each segment passes b's link once, on its way in
	for _, s := range segments(n.captured(t, "b"), 999) {
		if s.Flags == wirepeer.SYN {
			seen[s.String()]++
		}
	}
	if len(seen) == 0 {
		t.Fatal("nothing was routed to host b")
	}
	for s, times := range seen {
		if times > 2 { // the program's own retransmission may look the same
			t.Errorf("%d times on the link of host b, which forwards it: %s", times, s)
		}
	}
}

// The path's MTU is smaller than the link's: data arrives all the same, both ways.
func TestSmallPathMTUIsFollowed(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{plainC: true})
	n.daemons(t)
	server := n.b.serveTransfers(t, 80)
	plain := (&node{Host: n.Host("c"), netns: ownNamespace(t, n.Host("c").Do)}).serveTransfers(t, 80)
	// The router's routes have an MTU, its links and the hosts' have the usual one.
	for i, dev := range []string{"to-a", "to-b", "to-c"} {
		for _, prefix := range []string{fmt.Sprintf("10.83.%d.0/24", i+1), fmt.Sprintf("fd83:0:0:%d::/64", i+1)} {
			if err := inNamespace(n.router, func() error {
				return runHere("ip", "route", "replace", prefix, "dev", dev, "mtu", "1300", "metric", "1")
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, f := range families {
		for _, host := range []string{"b", "c"} {
			addr := n.Host(host).Addr4()
			if f.v6 {
				addr = n.Host(host).Addr6()
			}
			if _, err := n.a.transfer(soon(t), netip.AddrPortFrom(addr, 80), 5_000_000, 5_000_000); err != nil {
				t.Errorf("%s, to host %s: %v", f.name, host, err)
			}
		}
	}
	if err := errors.Join(server.failures(), plain.failures()); err != nil {
		t.Error(err)
	}
}

// A host without IPv6 loses that half and nothing else.
func TestHostWithoutIPv6(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	for _, h := range []*node{n.a, n.b} {
		h.run(t, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
	}
	before := n.a.state(t)
	config := fmt.Sprintf("[[outbound]]\nto = [\"%v/32\"]\npolicy = \"require\"\n\n[[inbound]]\nports = [\"80\"]\npolicy = \"require\"\n", n.b.Addr4())
	a := n.a.up(t, config)
	n.b.up(t, config)
	n.b.serveTransfers(t, 80)
	if _, err := n.a.transfer(soon(t), netip.AddrPortFrom(n.b.Addr4(), 80), 100_000, 100_000); err != nil {
		t.Error(err)
	}
	a.stop(t)
	if !strings.Contains(a.output(), "IPv6") {
		t.Errorf("it does not say that it leaves IPv6 out:\n%s", a.output())
	}
	sameState(t, "after the stop", before, n.a.state(t))
	d := n.a.launch(t, everything(opportunistic, ""))
	<-d.done
	if status := exitStatus(t, d.err); status != 1 || !strings.Contains(d.output(), "IPv6") {
		t.Errorf("a prefix of IPv6: status %d, want 1, and the reason:\n%s", status, d.output())
	}
}

// Under require what was there before is reset at the start: it is in clear.
func TestRequireResetsConnectionsFromBefore(t *testing.T) {
	t.Parallel()
	for _, which := range []string{"client's host", "service's host"} {
		t.Run(which, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t, networkOptions{capture: true})
			l := n.b.listen(t, 80)
			client := n.a.mustDial(t, netip.AddrPortFrom(n.b.Addr4(), 80))
			service := accept(t, l)
			mustWrite(t, "client", client, "hello")
			mustRead(t, "service", service, "hello")
			own, other := client, service
			if which == "client's host" {
				n.a.up(t, everything(require, ""))
			} else {
				n.b.up(t, everything(require, ""))
				own, other = service, client
			}
			if _, err := own.Write([]byte(marker)); err == nil {
				if _, err := io.ReadAll(own); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNABORTED) {
					t.Errorf("program on the %s: %v, want a reset", which, err)
				}
			}
			if which == "client's host" {
				if _, err := other.Write([]byte("anybody there?")); err == nil {
					mustReset(t, "the other end", other, nil)
				}
			} // else nothing of the service's port leaves or enters in clear, not even a reset
			n.finish(t)
			if bytes.Contains(bytes.Join(n.captured(t, "a"), nil), []byte("plain"+"text")) {
				t.Error("in clear on the wire under require")
			}
		})
	}
}

// runHere runs a program on the calling thread's network namespace.
func runHere(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
