//go:build linux

package routing

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// die is the death of the process: the device goes with it.
func (s *scene) die(t *testing.T) {
	t.Helper()
	if err := s.host.crash(); err != nil {
		t.Fatal(err)
	}
	s.tun.close()
}

// connect opens a captured connection, the test answering for the far end.
func (s *scene) connect(t *testing.T, from *netNS, dst string) net.Conn {
	t.Helper()
	c := dial(t, from, "", dst)
	s.answer(s.tun.want("* > " + dst + " <S>"))
	conn := <-c
	if conn.err != nil {
		t.Fatalf("connect to %s: %v", dst, conn.err)
	}
	s.tun.want("* > " + dst + " <.>")
	return conn.Conn
}

func TestOpportunisticFlowsInClearAfterACrash(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	c := testConfig(t)
	// The first rule decides, although a later one would close the way.
	c.Outbound = append(c.Outbound, Outbound{To: prefixes("0.0.0.0/0", "::/0"), Policy: Require})
	s.apply(t, c)
	s.die(t)
	for _, p := range places {
		l := s.server.listen(at(p.server, 80))
		if c := <-dial(t, nil, "", at(p.server, 80)); c.err != nil {
			t.Error(c.err)
		}
		acceptOne(t, l)
	}
}

// dialFrom connects with a socket that is bound to a device, if dev is not empty.
func dialFrom(dev, to string) error {
	d := net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) (err error) {
		ctl := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), dev) })
		return errors.Join(err, ctl)
	}}
	c, err := d.Dial("tcp", to)
	if err == nil {
		_ = c.Close()
	}
	return err
}

func unreachable(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES)
}

func TestRequireIsClosedAfterACrash(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	c := testConfig(t)
	c.Outbound[0].Policy, c.Inbound[0].Policy = Require, Require
	s.apply(t, c)
	wire := s.server.tap("srv0")
	for _, p := range places {
		s.server.listen(at(p.server, 80))
		s.server.listen(at(p.server, 81))
		// A socket that is bound to the uplink does not get by while we are there either.
		if err := dialFrom("up0", at(p.server, 80)); !unreachable(err) {
			t.Errorf("alive: dial %s from up0: %v, want unreachable", p.server, err)
		}
	}
	s.die(t)
	for _, p := range places {
		for _, dev := range []string{"", "up0"} {
			if err := dialFrom(dev, at(p.server, 80)); !unreachable(err) {
				t.Errorf("dial %s from %q: %v, want unreachable", p.server, dev, err)
			}
		}
		// Inbound: clients from outside get nothing, local ones do; also if the service is
		// bound to the device.
		for _, dev := range []string{"", "up0"} {
			lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
				ctl := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), dev) })
				return errors.Join(err, ctl)
			}}
			l, err := lc.Listen(t.Context(), "tcp", at(p.host, 80))
			if err != nil {
				t.Fatal(err)
			}
			if c := <-dialBriefly(t, s.server, at(p.host, 80)); c.err == nil {
				t.Errorf("a plain client gets to a service bound to %q", dev)
			}
			if dev == "" {
				if c := <-dial(t, nil, "", at(p.host, 80)); c.err != nil {
					t.Errorf("local client: %v", c.err)
				}
			}
			_ = l.Close()
		}
		// Other ports are open both ways.
		if c := <-dial(t, nil, "", at(p.server, 81)); c.err != nil {
			t.Error(c.err)
		}
		for _, b := range wire.until("* > " + at(p.server, 81) + " <S>") {
			if strings.Contains(b, "> "+at(p.server, 80)+" ") {
				t.Errorf("on the wire: %s", b)
			}
		}
	}
}

// The tail of a captured connection must not leave in clear, under no policy, and its
// program must hear of it at once.
func TestGuardResetsCapturedConnectionsAfterACrash(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	for _, v := range []int{4, 6} { // so that there is a captured connection of a routed machine, too
		if err := conf(v, "all", "forwarding").write("1"); err != nil {
			t.Fatal(err)
		}
	}
	s.apply(t, testConfig(t))
	var conns []net.Conn
	for _, p := range places {
		conns = append(conns, s.connect(t, nil, at(p.server, 80)), s.connect(t, s.neighbour, at(p.server, 80)))
	}
	wire := s.server.tap("srv0")
	s.die(t)
	for _, c := range conns {
		if _, err := c.Write([]byte("secret")); err != nil && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("write: %v", err)
		}
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%v to %v: read: %v, want a reset", c.LocalAddr(), c.RemoteAddr(), err)
		}
	}
	for _, p := range places {
		s.server.listen(at(p.server, 81))
		if c := <-dial(t, nil, "", at(p.server, 81)); c.err != nil {
			t.Error(c.err)
		}
		for _, b := range wire.until("* > " + at(p.server, 81) + " <S>") {
			if strings.Contains(b, "> "+at(p.server, 80)+" ") {
				t.Errorf("on the wire: %s", b)
			}
		}
	}
}

// What a killed instance has left is taken over by the next, and nothing remains in
// the end, sysctls included. Its captured connections are reset.
func TestNextStartTakesOverLeftovers(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	before := snapshot(t)
	c := testConfig(t)
	c.Outbound[0].Policy, c.Inbound[0].Policy = Require, Require
	var old []net.Conn
	for range 3 { // more starts than slots
		s.apply(t, c)
		for _, p := range places {
			old = append(old, s.connect(t, nil, at(p.server, 80)))
		}
		s.die(t)
	}
	s.apply(t, c)
	for _, conn := range old {
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("captured by a killed instance: read: %v, want aborted", err)
		}
	}
	for _, p := range places {
		s.connect(t, nil, at(p.server, 80))
	}
	if err := s.host.ResetCaptured(t.Context()); err != nil {
		t.Error(err)
	}
	s.tun.close()
	if err := s.host.Close(); err != nil {
		t.Error(err)
	}
	sameAs(t, before)
}

func TestCleanRemovesLeftovers(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	before := snapshot(t)
	if err := Clean(t.Context(), testLog(t)); err != nil {
		t.Errorf("with nothing to clean: %v", err)
	}
	sameAs(t, before)
	c := testConfig(t)
	c.Outbound[0].Policy, c.Inbound[0].Policy = Require, Require
	s.apply(t, c)
	if err := Clean(t.Context(), testLog(t)); !errors.Is(err, ErrRunning) {
		t.Errorf("Clean with a live instance: %v, want ErrRunning", err)
	}
	s.die(t)
	if err := Clean(t.Context(), testLog(t)); err != nil {
		t.Error(err)
	}
	sameAs(t, before)
}

// A stop leaves no captured connection behind, and no other is touched.
func TestResetCaptured(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	s.apply(t, testConfig(t))
	for _, p := range places {
		captured := s.connect(t, nil, at(p.server, 80))
		s.server.listen(at(p.server, 81))
		other := <-dial(t, nil, "", at(p.server, 81))
		if other.err != nil {
			t.Fatal(other.err)
		}
		// The local leg of an inbound connection.
		l, err := net.Listen("tcp", at(p.h, 80))
		if err != nil {
			t.Fatal(err)
		}
		s.tun.send(at(p.server, 4444), at(p.h, 80), "S", 1, 0)
		synAck := s.tun.want(at(p.h, 80) + " > * <S.>")
		s.tun.send(at(p.server, 4444), at(p.h, 80), ".", 2, tcpOf(synAck).Seq+1)
		inbound, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.host.ResetCaptured(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, c := range []net.Conn{captured, inbound} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
				t.Errorf("%v to %v: read: %v, want aborted", c.LocalAddr(), c.RemoteAddr(), err)
			}
		}
		if _, err := other.Write([]byte("x")); err != nil {
			t.Errorf("not captured: %v", err)
		}
		_, _ = inbound.Close(), l.Close()
	}
}
