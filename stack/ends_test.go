package stack

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// gonet keeps netstack's errors as texts only.
func isReset(err error) bool {
	return err != nil && !errors.Is(err, io.EOF) &&
		(strings.Contains(err.Error(), (&tcpip.ErrConnectionReset{}).String()) || strings.Contains(err.Error(), (&tcpip.ErrConnectionAborted{}).String()))
}

func isRefused(err error) bool {
	return err != nil && strings.Contains(err.Error(), (&tcpip.ErrConnectionRefused{}).String())
}

// bothWays runs f with a relay at the dialling end, and again with one at the other.
func bothWays(t *testing.T, f func(t *testing.T, client, server *lanHost, listen, dial netip.Addr)) {
	t.Helper()
	t.Run("outbound", func(t *testing.T) {
		l := newLAN(t)
		a, b := l.addHost(t), l.addHost(t)
		a.startRelay(t, Options{})
		f(t, a, b, b.addr4, b.addr4)
	})
	t.Run("inbound", func(t *testing.T) {
		l := newLAN(t)
		a, b := l.addHost(t), l.addHost(t)
		b.startRelay(t, Options{Inbound: anyInbound}, 80)
		f(t, a, b, b.h4, b.addr4)
	})
	t.Run("both", func(t *testing.T) {
		l := newLAN(t)
		a, b := l.addHost(t), l.addHost(t)
		a.startRelay(t, Options{})
		b.startRelay(t, Options{Inbound: anyInbound}, 80)
		f(t, a, b, b.h4, b.addr4)
	})
}

func noConnsLeft(t *testing.T, hosts ...*lanHost) {
	t.Helper()
	for _, h := range hosts {
		if h.relay != nil {
			waitFor(t, "no connection is left", func() bool { return len(h.relay.Conns(false)) == 0 })
		}
	}
}

func TestHalfCloseByClient(t *testing.T) { bothWays(t, halfCloseByClient) }

func halfCloseByClient(t *testing.T, client, server *lanHost, listen, dial netip.Addr) {
	t.Helper()
	request, answer := randomBytes(3, 100_000), randomBytes(4, 300_000)
	server.serve(t, listen, 80, func(c *gonet.TCPConn) {
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, request) {
			t.Errorf("server read %d bytes and %v, want %d and end-of-file", len(got), err, len(request))
		}
		send(t, c, answer) // only after the client's end-of-file
	})
	c := client.mustDial(t, netip.AddrPortFrom(dial, 80))
	if got := exchange(t, c, request); !bytes.Equal(got, answer) {
		t.Errorf("client read %d bytes, want %d", len(got), len(answer))
	}
	noConnsLeft(t, client, server)
}

func TestHalfCloseByServer(t *testing.T) { bothWays(t, halfCloseByServer) }

func halfCloseByServer(t *testing.T, client, server *lanHost, listen, dial netip.Addr) {
	t.Helper()
	greeting, upload := randomBytes(5, 1000), randomBytes(6, 300_000)
	done := make(chan []byte, 1)
	server.serve(t, listen, 80, func(c *gonet.TCPConn) {
		send(t, c, greeting)
		sendFIN(t, c)
		got, err := io.ReadAll(c)
		if err != nil {
			t.Errorf("server: %v", err)
		}
		done <- got
	})
	c := client.mustDial(t, netip.AddrPortFrom(dial, 80))
	hurry(c)
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, greeting) {
		t.Fatalf("client read %d bytes and %v, want %d and end-of-file", len(got), err, len(greeting))
	}
	if _, err := c.Write(upload); err != nil {
		t.Fatal(err)
	}
	sendFIN(t, c)
	if got := <-done; !bytes.Equal(got, upload) {
		t.Errorf("server read %d bytes, want %d", len(got), len(upload))
	}
	noConnsLeft(t, client, server)
}

// reset closes c with RST: netstack does when what came has not been read.
func reset(t *testing.T, c *gonet.TCPConn) {
	t.Helper()
	_ = c.Close()
}

func TestResetByServer(t *testing.T) { bothWays(t, resetByServer) }

func resetByServer(t *testing.T, client, server *lanHost, listen, dial netip.Addr) {
	t.Helper()
	got := make(chan struct{})
	server.serve(t, listen, 80, func(c *gonet.TCPConn) {
		_ = readByte(c) // and leave the rest
		<-got
		reset(t, c)
	})
	c := client.mustDial(t, netip.AddrPortFrom(dial, 80))
	hurry(c)
	if _, err := c.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	close(got)
	if n, err := c.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("client read %d bytes and %v, want a reset", n, err)
	}
	noConnsLeft(t, client, server)
}

func TestResetByClient(t *testing.T) { bothWays(t, resetByClient) }

func resetByClient(t *testing.T, client, server *lanHost, listen, dial netip.Addr) {
	t.Helper()
	errs := make(chan error, 1)
	server.serve(t, listen, 80, func(c *gonet.TCPConn) {
		hurry(c)
		send(t, c, make([]byte, 1000))
		_, err := io.ReadAll(c)
		errs <- err
	})
	c := client.mustDial(t, netip.AddrPortFrom(dial, 80))
	hurry(c)
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	reset(t, c)
	if err := <-errs; !isReset(err) {
		t.Errorf("server: %v, want a reset", err)
	}
	noConnsLeft(t, client, server)
}

// A server that answers and then resets, because it has not read the whole upload, is
// still heard.
func TestAnswerBeforeResetArrives(t *testing.T) { bothWays(t, answerBeforeReset) }

func answerBeforeReset(t *testing.T, client, server *lanHost, listen, dial netip.Addr) {
	t.Helper()
	answer := randomBytes(7, 10_000) // within the server's first window: its reset drops what it has not sent
	server.serve(t, listen, 80, func(c *gonet.TCPConn) {
		_ = readByte(c)
		send(t, c, answer)
		reset(t, c)
	})
	c := client.mustDial(t, netip.AddrPortFrom(dial, 80))
	hurry(c)
	if _, err := c.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if !isReset(err) {
		t.Errorf("read ended with %v, want a reset", err)
	}
	if !bytes.Equal(got, answer) {
		t.Errorf("client read %d bytes before the reset, want %d", len(got), len(answer))
	}
	noConnsLeft(t, client, server)
}

func TestRefused(t *testing.T) {
	l := newLAN(t)
	a, b := l.addHost(t), l.addHost(t)
	a.startRelay(t, Options{})
	for _, addr := range []netip.Addr{b.addr4, b.addr6} {
		if c, err := a.dial(t, netip.AddrPortFrom(addr, 81)); !isRefused(err) {
			t.Errorf("dial %s: %v, %v, want refused", addr, c, err)
		}
	}
	if got := a.relay.Counters().Refused; got != 2 {
		t.Errorf("%d refused, want 2", got)
	}
}

// Routers' errors become the program's, whatever netstack makes of their code.
func TestUnreachable(t *testing.T) {
	nowhere4, nowhere6 := netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8:ffff::9")
	for _, tt := range []struct {
		name string
		dst  netip.Addr
		code uint8
		want tcpip.Error
	}{
		{"ip4 network", nowhere4, uint8(header.ICMPv4NetUnreachable), &tcpip.ErrNetworkUnreachable{}},
		{"ip4 host", nowhere4, uint8(header.ICMPv4HostUnreachable), &tcpip.ErrHostUnreachable{}},
		{"ip4 prohibited", nowhere4, uint8(header.ICMPv4AdminProhibited), &tcpip.ErrHostUnreachable{}},
		{"ip4 port", nowhere4, uint8(header.ICMPv4PortUnreachable), &tcpip.ErrConnectionRefused{}},
		{"ip6 network", nowhere6, uint8(header.ICMPv6NetworkUnreachable), &tcpip.ErrNetworkUnreachable{}},
		{"ip6 port", nowhere6, uint8(header.ICMPv6PortUnreachable), &tcpip.ErrConnectionRefused{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLAN(t)
			a := l.addHost(t)
			a.startRelay(t, Options{})
			l.nowhere = func(from *lanHost, packet []byte) {
				_, dst := addresses(packet)
				deliver(from.tunLink, buildUnreachable(dst.Next(), packet, icmpError{tt.code}))
			}
			_, err := a.dial(t, netip.AddrPortFrom(tt.dst, 80))
			var op *net.OpError
			if !errors.As(err, &op) || op.Err.Error() != tt.want.String() {
				t.Errorf("dial: %v, want %v", err, tt.want)
			}
			if got := a.relay.Counters().Unreachable; got != 1 {
				t.Errorf("%d unreachable, want 1", got)
			}
			noConnsLeft(t, a)
		})
	}
}

// netstack as a program's kernel knows few of ICMPv6's codes, so what reaches it is
// looked at instead.
func TestUnreachableCodeIsPassedOn(t *testing.T) {
	l := newLAN(t)
	a := l.addHost(t)
	a.startRelay(t, Options{})
	codes := make(chan icmpError, 4)
	a.onProgram = func(packet []byte) {
		if _, _, e, ok := parseUnreachable(packet); ok {
			codes <- e
		}
	}
	want := icmpError{uint8(header.ICMPv6Prohibited)}
	l.nowhere = func(from *lanHost, packet []byte) {
		_, dst := addresses(packet)
		deliver(from.tunLink, buildUnreachable(dst.Next(), packet, want))
	}
	a.dialAway(t, netip.MustParseAddrPort("[2001:db8:ffff::9]:80"))
	select {
	case got := <-codes:
		if got != want {
			t.Errorf("the program was told %v, want %v", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Error("the program was told nothing")
	}
}
