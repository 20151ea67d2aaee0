package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// A program asks about a socket of its own.

// own asks about the connection of that socket, by what getsockname and getpeername say.
func (d *daemon) own(t *testing.T, c *net.TCPConn) conn {
	t.Helper()
	out := d.node.run(t, program, "conns", "--json", "--local", addrPort(c.LocalAddr()).String(),
		"--remote", addrPort(c.RemoteAddr()).String(), "--socket", d.node.socket())
	var found []conn
	if err := json.Unmarshal([]byte(out), &found); err != nil || len(found) != 1 {
		t.Fatalf("host %s: tcpcrypt conns --local --remote: %v\n%s", d.node.Name(), err, out)
	}
	if err := found[0].valid(); err != nil {
		t.Errorf("host %s: %v: %v", d.node.Name(), err, found[0])
	}
	return found[0]
}

func TestProgramsAskAboutTheirOwnSockets(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	n.servicePorts(t)
	a, b := n.daemonsUnder(t, opportunistic, opportunistic, "")
	for _, f := range families {
		for i := range 3 { // fresh, and resumed
			client, service := n.pairOf(t, f.v6)
			mustWrite(t, "client", client, "hello")
			mustRead(t, "service", service, "hello")
			mine, theirs := a.own(t, client), b.own(t, service)
			if !mine.Encrypted || mine.SessionID == nil || theirs.SessionID == nil || *mine.SessionID != *theirs.SessionID {
				t.Errorf("%s, connection %d: client %v, server %v; want one session id", f.name, i, mine, theirs)
			}
			if mine.Direction != "outbound" || theirs.Direction != "inbound" {
				t.Errorf("%s: client %v, server %v", f.name, mine, theirs)
			}
			// The service's connection goes by its outer name as well.
			out := n.b.run(t, program, "conns", "--json", "--local", theirs.Local, "--remote", theirs.Remote, "--socket", n.b.socket())
			if !strings.Contains(out, *theirs.SessionID) {
				t.Errorf("%s: by %s and %s: %s", f.name, theirs.Local, theirs.Remote, out)
			}
		}
	}
	stranger := netip.AddrPortFrom(n.b.Addr4(), 9).String()
	out, err := n.a.try(t, program, "conns", "--json", "--local", stranger, "--remote", stranger, "--socket", n.a.socket())
	if exitStatus(t, err) == 0 && strings.TrimSpace(out) != "[]" {
		t.Errorf("a connection that there is not: %s", out)
	}
	if out, err := n.a.try(t, program, "conns", "--local", fmt.Sprint(n.a.Addr4()), "--remote", stranger, "--socket", n.a.socket()); exitStatus(t, err) != 2 {
		t.Errorf("an address without port: %v, %s; want status 2", err, out)
	}
}
