package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What the daemon does to its host, and takes back.

// state is everything that a daemon might change, one command's output each.
func (n *node) state(t *testing.T) map[string]string {
	t.Helper()
	s := make(map[string]string)
	for _, command := range []string{
		"ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all", "ip addr", "ip -d link", "nft list ruleset",
	} {
		words := strings.Fields(command)
		s[command] = n.run(t, words[0], words[1:]...)
	}
	var sysctls []string
	for line := range strings.Lines(n.run(t, "sysctl", "-a", "-r", "^net\\.", "--ignore")) {
		if !strings.Contains(line, "nf_conntrack_count") && !strings.Contains(line, "permission denied") {
			sysctls = append(sysctls, line)
		}
	}
	s["sysctl -a"] = strings.Join(sysctls, "")
	return s
}

// sameState compares; settings that a kernel module has brought meanwhile do not count.
func sameState(t *testing.T, when string, before, after map[string]string) {
	t.Helper()
	known := make(map[string]bool)
	for line := range strings.Lines(before["sysctl -a"]) {
		name, _, _ := strings.Cut(line, " =")
		known[name] = true
	}
	var kept strings.Builder
	for line := range strings.Lines(after["sysctl -a"]) {
		if name, _, _ := strings.Cut(line, " ="); known[name] {
			kept.WriteString(line)
		}
	}
	after["sysctl -a"] = kept.String()
	for command := range before {
		if diff := cmp.Diff(lines(before[command]), lines(after[command])); diff != "" {
			t.Errorf("%s: %s is not as before (-before +after):\n%s", when, command, diff)
		}
	}
}

func lines(s string) []string { return strings.Split(s, "\n") }

func TestStopLeavesTheHostAsItWas(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	// Settings of somebody else's, that a clumsy undo would lose.
	n.b.run(t, "sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=1", "net.ipv4.conf.eth0.rp_filter=1")
	n.b.run(t, "nft", "add table inet somebody; add chain inet somebody else { type filter hook forward priority 0; }")
	n.b.run(t, "ip", "rule", "add", "to", "192.0.2.0/24", "table", "1234")
	before := n.b.state(t)
	for range 2 {
		b := n.b.up(t, everything(require, ""))
		during := n.b.state(t)
		for _, command := range []string{"ip rule", "ip addr", "nft list ruleset"} {
			if during[command] == before[command] {
				t.Errorf("%s shows nothing of the daemon: the test would find nothing", command)
			}
		}
		b.stop(t)
		sameState(t, "after SIGTERM", before, n.b.state(t))
	}
	b := n.b.up(t, everything(opportunistic, ""))
	if err := b.end(t, syscall.SIGINT); err != nil {
		t.Errorf("after SIGINT: %v, want exit status 0\n%s", err, b.output())
	}
	sameState(t, "after SIGINT", before, n.b.state(t))
}

func TestRestartAfterKillCleansUp(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	before := n.b.state(t)
	n.b.up(t, everything(opportunistic, "")).kill(t)
	n.b.up(t, everything(require, "")).kill(t)
	n.b.up(t, everything(opportunistic, "")).stop(t)
	sameState(t, "after kill -9, start and stop", before, n.b.state(t))
}

func TestDaemonSaysReadyOnceWhenItIs(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	b := n.b.up(t, everything(opportunistic, ""))
	if _, err := n.b.try(t, program, "conns", "--json", "--socket", n.b.socket()); err != nil {
		t.Errorf("the control socket does not stand when the daemon says ready: %v", err)
	}
	b.stop(t)
	if found := readyWord.FindAllString(b.output(), -1); len(found) != 1 {
		t.Errorf("the word ready %d times, want once:\n%s", len(found), b.output())
	}
}

// A set-up that cannot work ends with status 1, is never ready and leaves nothing.
func TestFailedSetUpLeavesNothing(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	fails := func(t *testing.T, config string) {
		t.Helper()
		before := n.b.state(t)
		d := n.b.launch(t, config)
		select {
		case <-d.done:
		case <-time.After(patience):
			t.Fatalf("does not end:\n%s", d.output())
		}
		if status := exitStatus(t, d.err); status != 1 {
			t.Errorf("exit status %d, want 1", status)
		}
		if readyWord.MatchString(d.output()) || strings.TrimSpace(d.output()) == "" {
			t.Errorf("it wrote %q", d.output())
		}
		sameState(t, "after a failed start", before, n.b.state(t))
	}
	t.Run("taken device name", func(t *testing.T) {
		n.b.run(t, "ip", "tuntap", "add", "tcpcrypt0", "mode", "tun")
		fails(t, everything(opportunistic, ""))
		n.b.run(t, "ip", "tuntap", "del", "tcpcrypt0", "mode", "tun")
	})
	t.Run("broken configuration", func(t *testing.T) {
		fails(t, "[[outbound]]\nto = [\"10.0.0.0/8\"]\npolicy = \"requir\"\n")
	})
	t.Run("unusable control socket", func(t *testing.T) {
		if err := os.Mkdir(n.b.socket(), 0o755); err != nil {
			t.Fatal(err)
		}
		fails(t, everything(opportunistic, ""))
		if err := os.Remove(n.b.socket()); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("started twice", func(t *testing.T) {
		first := n.b.up(t, everything(opportunistic, ""))
		fails(t, everything(opportunistic, ""))
		n.b.serveTransfers(t, 80)
		n.a.up(t, everything(require, ""))
		if _, err := n.a.transfer(soon(t), netip.AddrPortFrom(n.b.Addr4(), 80), 1000, 1000); err != nil {
			t.Errorf("the first daemon does not work any more: %v", err)
		}
		first.stop(t)
	})
}

// Switching on breaks nothing, nor does switching off.
func TestConnectionsFromBeforeSurviveStartAndStop(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	n.servicePorts(t)
	type pair struct {
		name            string
		client, service *net.TCPConn
	}
	var pairs []pair
	for _, f := range families {
		client, service := n.pairOf(t, f.v6)
		pairs = append(pairs, pair{f.name, client, service})
	}
	talk := func(when string) {
		t.Helper()
		for _, p := range pairs {
			setDeadline(t, p.client)
			setDeadline(t, p.service)
			for range 3 {
				mustWrite(t, p.name+" client, "+when, p.client, "question")
				mustRead(t, p.name+" service, "+when, p.service, "question")
				mustWrite(t, p.name+" service, "+when, p.service, "answer")
				mustRead(t, p.name+" client, "+when, p.client, "answer")
			}
		}
	}
	talk("before")
	for range 2 {
		a, b := n.daemons(t)
		talk("while the daemons run")
		client, service := n.pairOf(t, false) // and new ones are encrypted
		mustWrite(t, "new client", client, "hello")
		mustRead(t, "new service", service, "hello")
		if got := a.conns(t); len(got) != 1 || !got[0].Encrypted {
			t.Errorf("tcpcrypt conns says %v, want the new connection alone, encrypted", got)
		}
		a.stop(t)
		b.stop(t)
		talk("after the stop")
	}
	for _, p := range pairs {
		if err := p.client.Close(); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, "service", p.service)
	}
}

// A stop resets what is captured: no tail leaves in clear, and nobody waits for ever.
func TestStopResetsCapturedConnections(t *testing.T) {
	t.Parallel()
	for _, which := range []string{"a", "b"} {
		t.Run("on host "+which, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t, networkOptions{capture: true})
			n.servicePorts(t)
			a, b := n.daemons(t)
			client, service := n.pairOf(t, false)
			mustWrite(t, "client", client, marker)
			mustRead(t, "service", service, marker)
			if which == "a" {
				a.stop(t)
			} else {
				b.stop(t)
			}
			if _, err := client.Write([]byte(marker)); err == nil { // nothing has come yet
				mustReset(t, "client", client, nil)
			} else if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("client: %v, want a reset", err)
			}
			mustReset(t, "service", service, nil)
			n.finish(t)
			if bytes.Contains(bytes.Join(n.captured(t, "a"), nil), []byte("plain"+"text")) {
				t.Error("the wire carries plaintext")
			}
		})
	}
}

func TestCheckCommand(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	write := func(config string) string {
		file := filepath.Join(n.a.dir, "policy.toml")
		if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	if out, err := n.a.try(t, program, "check", write(everything(require, everyAlgorithm))); err != nil || out != "" {
		t.Errorf("a right file: %v, %q; want silence and status 0", err, out)
	}
	for _, c := range []struct{ config, want string }{
		{"[[outbound]]\nto = [\"10.0.0.0/8\"]\npolicy = \"requir\"\n", ":3: "},
		{"[[outbound]]\nto = [\"10.0.0.0/33\"]\npolicy = \"require\"\n", ":2: "},
		{"[crypto]\nteps = [\"curve25519\"]\ncolour = \"blue\"\n", ":3: "},
		{"[crypto]\nteps = [\"curve25518\"]\n", ":2: "},
		{"[[inbound]]\nports = [\"80000\"]\npolicy = \"require\"\n", ":2: "},
		{"[[inbound]\n", ":1: "},
	} {
		file := write(c.config)
		out, err := n.a.try(t, program, "check", file)
		if status := exitStatus(t, err); status != 1 || !strings.Contains(out, file+c.want) {
			t.Errorf("%q: status %d, %q; want 1 and %s", c.config, status, out, file+c.want)
		}
	}
	for _, args := range [][]string{{"doctor"}, {"up", "--no-such-flag"}, {"check"}} {
		if _, err := n.a.try(t, program, args...); exitStatus(t, err) != 2 {
			t.Errorf("tcpcrypt %v: %v, want status 2", args, err)
		}
	}
}

// Without a daemon conns says so.
func TestConnsWithoutADaemonFails(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	if out, err := n.a.try(t, program, "conns", "--socket", n.a.socket()); exitStatus(t, err) == 0 || out == "" {
		t.Errorf("status 0 or silence: %q", out)
	}
}

// Without the flag closed connections are not shown; without any, the answer is [].
func TestConnsShowsClosedConnectionsOnRequestOnly(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	n.servicePorts(t)
	a, _ := n.daemons(t)
	show := func(flags ...string) string {
		return strings.TrimSpace(n.a.run(t, program, append([]string{"conns", "--json", "--socket", n.a.socket()}, flags...)...))
	}
	if got := show(); got != "[]" {
		t.Errorf("before any connection: %q, want []", got)
	}
	client, service := n.pairOf(t, false)
	mustWrite(t, "client", client, "hello")
	mustRead(t, "service", service, "hello")
	if got := show(); !strings.Contains(got, `"open"`) {
		t.Errorf("with an open connection: %s", got)
	}
	for _, c := range []io.Closer{client, service} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	a.conn(t, "the closed connection", func(c conn) bool { return c.State == "closed" && c.BytesSent == 5 })
	if got := show(); got != "[]" {
		t.Errorf("after its end: %q, want []", got)
	}
	if table := n.a.run(t, program, "conns", "--closed", "--socket", n.a.socket()); !strings.Contains(table, fmt.Sprint(n.b.Addr4())) {
		t.Errorf("the table does not show it:\n%s", table)
	}
}
