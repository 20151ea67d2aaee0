//go:build linux

package routing

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var errInjected = errors.New("injected")

// failAt makes the nth step fail.
func failAt(n int) (fail func(string) error, what *string) {
	what = new(string)
	return func(w string) error {
		if n--; n < 0 && *what == "" {
			*what = w
			return errInjected
		}
		return nil
	}, what
}

// fullConfig needs every kind of step.
func fullConfig(t *testing.T) Config {
	t.Helper()
	c := testConfig(t)
	c.MTU = 9000
	c.Outbound = append([]Outbound{
		{To: prefixes("10.1.2.0/24"), Policy: Bypass},
		{To: prefixes("10.1.0.0/16", "fd01::/64"), Except: prefixes("10.1.9.0/24"), Ports: ports(t, "443", "8000-65535"), Policy: Require},
	}, c.Outbound...)
	c.Inbound = append(c.Inbound, Inbound{Ports: ports(t, "443"), Policy: Require})
	return c
}

func TestFailureAtAnyStepUndoesEverything(t *testing.T) {
	if !inNetns(t) {
		return
	}
	newScene(t)
	if err := conf(4, "all", "rp_filter").write("1"); err != nil { // one more sysctl to set
		t.Fatal(err)
	}
	before := snapshot(t)
	c := fullConfig(t)
	for n := 0; ; n++ {
		fail, what := failAt(n)
		tun := openTUN(t, c.Interface)
		h, err := apply(t.Context(), c, testLog(t), trial{fail: fail})
		if *what == "" { // there is no nth step
			if err != nil {
				t.Fatal(err)
			}
			if n < 30 {
				t.Errorf("only %d steps", n)
			}
			for range 2 {
				if err := h.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}
			tun.close()
			sameAs(t, before)
			return
		}
		var e *Error
		if !errors.Is(err, errInjected) || !errors.As(err, &e) || e.What != *what {
			t.Errorf("step %q fails: Apply: %v", *what, err)
		}
		tun.close()
		sameAs(t, before)
		if t.Failed() {
			t.Fatalf("after failure of %q", *what)
		}
	}
}

// A start that fails after a crash must not open what the crash left closed.
func TestFailureAtAnyStepLeavesLeftoversClosed(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	before := snapshot(t)
	c := fullConfig(t)
	s.apply(t, c)
	s.die(t)
	for n := 0; ; n++ {
		fail, what := failAt(n)
		tun := openTUN(t, c.Interface)
		h, err := apply(t.Context(), c, testLog(t), trial{fail: fail})
		tun.close()
		if *what == "" {
			if err != nil {
				t.Fatal(err)
			}
			if err := h.Close(); err != nil {
				t.Error(err)
			}
			break
		}
		for _, p := range places {
			if err := dialFrom("up0", at(p.server, 443)); !unreachable(err) {
				t.Fatalf("after failure of %q: %v, want unreachable", *what, err)
			}
		}
	}
	sameAs(t, before)
}

// killAt starts and is killed before the nth step; false if there are fewer.
func (s *scene) killAt(t *testing.T, c Config, n int) (what string, killed bool) {
	t.Helper()
	s.tun = openTUN(t, c.Interface)
	fail, at := failAt(n)
	var h *Host
	var err error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, err = apply(t.Context(), c, testLog(t), trial{host: &h, fail: func(w string) error {
			if fail(w) != nil {
				runtime.Goexit() // nothing is undone
			}
			return nil
		}})
	}()
	<-ended
	if err != nil {
		t.Fatalf("killed before %q: Apply: %v", *at, err)
	}
	s.host = h
	if *at == "" {
		return "", false
	}
	s.die(t)
	return *at, true
}

func TestKilledAtAnyStep(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	before := snapshot(t)
	for n := 0; ; n++ {
		what, killed := s.killAt(t, fullConfig(t), n)
		if !killed {
			break
		}
		if err := Clean(t.Context(), testLog(t)); err != nil {
			t.Errorf("Clean: %v", err)
		}
		sameAs(t, before)
		if t.Failed() {
			t.Fatalf("killed before %q", what)
		}
	}
	if err := s.host.Close(); err != nil {
		t.Error(err)
	}
	s.tun.close()
	sameAs(t, before)
}

// Killed again while it takes over what was left when it was killed before.
func TestKilledAtAnyStepOfTakingOver(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	before := snapshot(t)
	c := fullConfig(t)
	s.apply(t, c)
	s.die(t)
	for n := 0; ; n++ {
		what, killed := s.killAt(t, c, n)
		if !killed {
			break
		}
		for _, p := range places {
			if err := dialFrom("up0", at(p.server, 443)); !unreachable(err) {
				t.Fatalf("killed before %q: %v, want unreachable", what, err)
			}
		}
	}
	s.tun.read()
	for _, p := range places {
		s.connect(t, nil, at(p.server, 80))
	}
	if err := s.host.Close(); err != nil {
		t.Error(err)
	}
	s.tun.close()
	sameAs(t, before)
}

func TestCancelledStartLeavesNothing(t *testing.T) {
	if !inNetns(t) {
		return
	}
	before := snapshot(t)
	c := testConfig(t)
	tun := openTUN(t, c.Interface)
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	_, err := apply(ctx, c, testLog(t), trial{fail: func(string) error {
		if n++; n == 10 {
			cancel()
		}
		return nil
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Apply: %v", err)
	}
	tun.close()
	sameAs(t, before)
}

// Others may have removed what we have made, or the device may be gone first.
func TestCloseTakesWhatIsGoneAsUndone(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	before := snapshot(t)
	for _, others := range [][]string{
		{"ip rule flush", "ip rule add priority 32766 lookup main", "ip rule add priority 32767 lookup default"},
		{"ip -6 rule flush", "ip -6 rule add priority 32766 lookup main"},
		{"nft flush ruleset"},
		{"ip addr flush dev tct0"},
		{"ip link delete tct0"},
	} {
		s.apply(t, fullConfig(t))
		for _, o := range others {
			w := strings.Fields(o)
			run(t, w[0], w[1:]...)
		}
		if err := s.host.Close(); err != nil {
			t.Errorf("after %q: Close: %v", others, err)
		}
		s.tun.close()
		if others[0] == "nft flush ruleset" {
			continue // with it went the notes, not the state
		}
	}
	after := snapshot(t)
	if strings.Contains(after, "proto 69") || strings.Contains(after, ownedTable) {
		sameAs(t, before)
	}
}

func TestCheckRefuses(t *testing.T) {
	if !inNetns(t) {
		return
	}
	newScene(t)
	c := testConfig(t)
	if err := Check(t.Context(), c); err != nil {
		t.Fatalf("nothing in the way: %v", err)
	}
	for _, w := range []struct {
		what       string
		make, undo string
		config     func(*Config)
		is         error
		text       string
	}{
		{what: "device", make: "ip link add tct0 type veth", undo: "ip link del tct0", is: ErrTaken, text: "tct0"},
		{what: "address", make: "ip addr add 198.18.0.9/24 dev up0", undo: "ip addr del 198.18.0.9/24 dev up0", is: ErrTaken, text: "198.18.0.9/24"},
		{what: "priority", make: "ip rule add priority 2100 lookup main", undo: "ip rule del priority 2100", is: ErrTaken, text: "2100"},
		{what: "priority, IPv6", make: "ip -6 rule add priority 2999 lookup main", undo: "ip -6 rule del priority 2999", is: ErrTaken, text: "2999"},
		{what: "table", make: "ip route add 192.0.2.0/24 dev up0 table 29795", undo: "ip route flush table 29795", is: ErrTaken, text: "29795"},
		{what: "nftables table", make: "nft add table inet tcpcrypt", undo: "nft delete table inet tcpcrypt", is: ErrTaken, text: "tcpcrypt"},
		{what: "local rule", make: "ip rule add priority 5000 lookup local", undo: "ip rule del priority 5000"},
		{what: "no local rule", make: "ip rule del priority 0", undo: "ip rule add priority 0 lookup local", text: "local"},
		{what: "require on a dynamic port", config: func(c *Config) {
			c.Inbound = []Inbound{{Ports: ports(t, "40000"), Policy: Require}}
		}, text: "40000"},
		{what: "bad name", config: func(c *Config) { c.Interface = "much too long a name" }, text: "device name"},
	} {
		if w.make != "" {
			f := strings.Fields(w.make)
			run(t, f[0], f[1:]...)
		}
		c := testConfig(t)
		if w.config != nil {
			w.config(&c)
		}
		before := snapshot(t)
		err := Check(t.Context(), c)
		sameAs(t, before)
		if w.undo != "" {
			f := strings.Fields(w.undo)
			run(t, f[0], f[1:]...)
		}
		if w.text == "" {
			if err != nil {
				t.Errorf("%s: %v, want none", w.what, err)
			}
			continue
		}
		var e *Error
		if !errors.As(err, &e) || e.Fix == "" || !strings.Contains(err.Error(), w.text) || w.is != nil && !errors.Is(err, w.is) {
			t.Errorf("%s: %v (%+v), want an *Error with %q and a fix", w.what, err, e, w.text)
		}
	}
}

func TestReservedPortMayBeRequired(t *testing.T) {
	if !inNetns(t) {
		return
	}
	c := testConfig(t)
	c.Inbound = []Inbound{{Ports: ports(t, "40000-40010"), Policy: Require}}
	if err := sysctlPath("net/ipv4/ip_local_reserved_ports").write("39000,40000-40020"); err != nil {
		t.Fatal(err)
	}
	if err := Check(t.Context(), c); err != nil {
		t.Error(err)
	}
}

func TestSecondInstanceIsRefused(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	s.apply(t, testConfig(t))
	c := testConfig(t)
	c.Interface = "other0"
	err := Check(t.Context(), c)
	if !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", unix.Getpid())) {
		t.Errorf("Check: %v, want ErrRunning with our process", err)
	}
	tun := openTUN(t, c.Interface)
	defer tun.close()
	before := snapshot(t)
	if _, err := Apply(t.Context(), c, testLog(t)); !errors.Is(err, ErrRunning) {
		t.Errorf("Apply: %v, want ErrRunning", err)
	}
	sameAs(t, before)
}

// Long lists go to the kernel in parts that fit.
func TestLargeConfig(t *testing.T) {
	if !inNetns(t) {
		return
	}
	s := newScene(t)
	before := snapshot(t)
	c := testConfig(t)
	c.Inbound[0].Ports = nil
	for i := range 2000 {
		p := uint16(2*i + 1)
		c.Inbound[0].Ports = append(c.Inbound[0].Ports, PortRange{p, p})
	}
	c.Outbound[0].Policy = Require
	for i := range 300 {
		c.Outbound = append(c.Outbound, Outbound{To: prefixes(fmt.Sprintf("10.%d.%d.0/24", 2+i/256, i%256)), Ports: ports(t, "80", "443-445"), Policy: Require})
	}
	s.apply(t, c)
	for _, p := range places {
		s.connect(t, nil, at(p.server, 80))
	}
	s.connect(t, nil, "10.3.43.1:445")
	if err := s.host.Close(); err != nil {
		t.Error(err)
	}
	s.tun.close()
	sameAs(t, before)
}

func TestWithoutIPv6(t *testing.T) {
	if !inNetns(t) {
		return
	}
	if err := conf(6, "all", "disable_ipv6").write("1"); err != nil {
		t.Fatal(err)
	}
	if IPv6() {
		t.Error("IPv6() = true")
	}
	c := testConfig(t)
	if err := Check(t.Context(), c); err == nil || !strings.Contains(err.Error(), "IPv6") {
		t.Errorf("Check: %v", err)
	}
	c.Host6, c.Stack6 = netip.Addr{}, netip.Addr{}
	if err := Check(t.Context(), c); err == nil || !strings.Contains(err.Error(), "fd01::/64") {
		t.Errorf("with an IPv6 prefix: Check: %v", err)
	}
	c.Outbound[0].To = prefixes("10.1.0.0/16")
	s := &scene{server: newNS(t, "server")}
	join(t, end{nil, "up0", []string{"10.1.0.1/16"}}, end{s.server, "srv0", []string{"10.1.0.2/16"}})
	before := snapshot(t)
	s.apply(t, c)
	s.connect(t, nil, "10.1.0.2:80")
	if err := s.host.Close(); err != nil {
		t.Error(err)
	}
	s.tun.close()
	sameAs(t, before)
}
