package e2e

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// How connections fail and end: as they would without us.

func TestClosedPortIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{plainC: true})
	n.daemons(t)
	for _, f := range families {
		for _, host := range []string{"b", "c"} { // with a daemon, and a stock kernel
			h := n.Host(host)
			addr := h.Addr4()
			if f.v6 {
				addr = h.Addr6()
			}
			conn, err := n.a.dial(soon(t), netip.AddrPortFrom(addr, 81))
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s, host %s: dial a closed port: %v, want %v", f.name, host, err, syscall.ECONNREFUSED)
			}
			if err == nil {
				_ = conn.Close()
			}
		}
	}
}

// errnos of dials, to be the same with a daemon as without.
func TestUnroutableAddressesFailAsWithoutUs(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	n.a.run(t, "ip", "route", "add", "unreachable", "10.83.240.0/24")
	n.a.run(t, "ip", "-6", "route", "add", "unreachable", "fd83:0:0:f0::/64")
	addrs := []string{
		"10.83.241.1:80", "[fd83:0:0:f1::1]:80", // the router has no route
		"10.83.240.1:80", "[fd83:0:0:f0::1]:80", // the host itself has none
		"10.83.2.77:80", "[fd83:0:0:2::77]:80", // nobody answers on the last link
	}
	errs := make(map[string]error)
	for _, a := range addrs {
		_, errs[a] = n.a.dial(soon(t), netip.MustParseAddrPort(a))
		if errno(errs[a]) == 0 {
			t.Fatalf("without a daemon: dial %s: %v", a, errs[a])
		}
	}
	n.a.up(t, everything(opportunistic, ""))
	for _, a := range addrs {
		_, err := n.a.dial(soon(t), netip.MustParseAddrPort(a))
		// Of an unreachable route of IPv6 the kernel tells itself "no route to host", and
		// others, us too, "network is unreachable": there is no ICMPv6 code for the former.
		if strings.HasPrefix(a, "[fd83:0:0:f0::") && errno(err) == syscall.ENETUNREACH {
			continue
		}
		if errno(err) != errno(errs[a]) {
			t.Errorf("dial %s: %v; without a daemon: %v", a, err, errs[a])
		}
	}
}

func errno(err error) syscall.Errno {
	var e syscall.Errno
	errors.As(err, &e)
	return e
}

// Silence is silence: the program's own SYN retries time out as they would have.
func TestSilentAddressTimesOutByTheProgramsOwnClock(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	peers := n.wirePeers(t)
	peers.Silence(peerAddr(false, 9))
	d := n.a.up(t, everything(opportunistic, ""))
	n.a.run(t, "sysctl", "-qw", "net.ipv4.tcp_syn_retries=2")
	_, err := n.a.dial(soon(t), netip.AddrPortFrom(peerAddr(false, 9), 80))
	if !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("dial: %v, want %v", err, syscall.ETIMEDOUT)
	}
	eventually(t, "the dial ends with the program's", func() error {
		for _, c := range d.conns(t) {
			if c.State != "closed" {
				return errors.New(c.String())
			}
		}
		return nil
	})
}

// pairOf connects a program on a with a service on b.
func (n *network) pairOf(t *testing.T, v6 bool) (client, service *net.TCPConn) {
	t.Helper()
	l := n.b.listen(t, 0)
	client = n.a.mustDial(t, netip.AddrPortFrom(n.b.addr(v6), addrPort(l.Addr()).Port()))
	service = accept(t, l)
	_ = l.Close()
	return client, service
}

// servicePorts makes what listen(0) gives fall under the inbound rule.
func (n *network) servicePorts(t *testing.T) {
	t.Helper()
	n.b.run(t, "sysctl", "-qw", "net.ipv4.ip_local_port_range=20000 29999")
}

func TestHalfCloseIsSeenAsEndOfFileWhileDataFlowsBack(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	n.servicePorts(t)
	n.daemons(t)
	for _, f := range families {
		for _, first := range []string{"client", "service"} {
			t.Run(f.name+", "+first+" first", func(t *testing.T) {
				x, y := n.pairOf(t, f.v6)
				if first == "service" {
					x, y = y, x
				}
				mustWrite(t, "first", x, "question")
				if err := x.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				mustReadAll(t, y, []byte("question"))
				for range 3 {
					mustWrite(t, "second", y, "answer")
					mustRead(t, "first", x, "answer")
				}
				if err := y.Close(); err != nil {
					t.Fatal(err)
				}
				mustEnd(t, "first", x)
			})
		}
	}
}

func TestResetArrivesAsReset(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{plainC: true})
	n.servicePorts(t)
	n.daemons(t)
	for _, f := range families {
		for _, first := range []string{"client", "service"} {
			t.Run(f.name+", by the "+first, func(t *testing.T) {
				x, y := n.pairOf(t, f.v6)
				mustWrite(t, "client", x, "hello")
				mustRead(t, "service", y, "hello")
				if first == "service" {
					x, y = y, x
				}
				if err := errors.Join(x.SetLinger(0), x.Close()); err != nil {
					t.Fatal(err)
				}
				mustReset(t, "other end", y, nil)
			})
		}
	}
}

// A program that reads late gets everything; one that never reads holds its sender up.
func TestSlowReadersGetEverything(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	n.servicePorts(t)
	n.daemons(t)
	client, service := n.pairOf(t, false)
	const size = 30_000_000
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(client, stream(size))
		done <- errors.Join(err, client.CloseWrite())
	}()
	other, otherService := n.pairOf(t, true) // meanwhile
	mustWrite(t, "other", other, "hello")
	mustRead(t, "other service", otherService, "hello")
	select {
	case err := <-done:
		t.Fatalf("%d bytes were taken while nobody reads, %v", size, err)
	default:
	}
	mustReadAll(t, service, streamBytes(size))
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The SYN of the program is answered only when the far end has answered.
func TestProgramsSYNIsHeldUntilTheFarEndAnswers(t *testing.T) {
	t.Parallel()
	o := newOutbound(t, everything(opportunistic, ""))
	answer := make(chan struct{})
	at, l := o.server(t, false, func() wirepeer.Script {
		return wirepeer.Script{Answer: wirepeer.Config{}.Answer, In: func(*wirepeer.Segment) bool {
			select {
			case <-answer:
				return true
			default:
				return false
			}
		}}
	})
	dialled := make(chan error, 1)
	go func() {
		conn, err := o.a.dial(soon(t), at)
		if err == nil {
			defer closeQuietly(conn)
		}
		dialled <- err
	}()
	o.daemon.conn(t, "the opening connection", func(c conn) bool {
		return c.Remote == at.String() && c.State == "opening" && !c.Encrypted && is(c.Reason, "opening")
	})
	select {
	case err := <-dialled:
		t.Fatalf("the program's connect ended before the far end answered: %v", err)
	default:
	}
	close(answer)
	if err := <-dialled; err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(soon(t)); err != nil {
		t.Error(err)
	}
}
