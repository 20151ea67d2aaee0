package e2e

import (
	"fmt"
	"net/netip"
	"testing"
)

// Address translation on the way. ENO knows nothing of addresses and ports.

// masquerade hides host a behind the router, on ports of the router's choice.
func masquerade(n *network) string {
	return fmt.Sprintf(`table inet nat {
 chain post {
  type nat hook postrouting priority 100;
  oifname %q tcp dport 80 masquerade to :40000-40999 random
 }
}
`, n.Host("b").RouterInterface())
}

// forward leads the router's own port 8080 and host b's to b's port 80.
func forward(n *network) string {
	return fmt.Sprintf(`table inet nat {
 chain pre {
  type nat hook prerouting priority -100;
  meta nfproto ipv4 tcp dport 8080 dnat ip to %v:80
  meta nfproto ipv6 tcp dport 8080 dnat ip6 to [%v]:80
 }
}
`, n.b.Addr4(), n.b.Addr6())
}

func TestTranslatedAddressesAndPorts(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{opportunistic, require} {
		for _, c := range []struct {
			name    string
			ruleset func(n *network) string
			port    uint16
		}{
			{"of the client", masquerade, 80},
			{"of the server", forward, 8080},
			{"of both", func(n *network) string { return masquerade(n) + forward(n) }, 8080},
		} {
			t.Run(c.name+", "+policy, func(t *testing.T) {
				t.Parallel()
				n := newNetwork(t, networkOptions{})
				a, b := n.daemonsUnder(t, policy, policy, "")
				server := n.b.serveTransfers(t, 80)
				n.box(t, c.ruleset(n))
				for _, f := range families {
					to := netip.AddrPortFrom(n.b.addr(f.v6), c.port)
					local, err := n.a.transfer(soon(t), to, 300_000, 300_000)
					if err != nil {
						t.Fatalf("%s: %v", f.name, err)
					}
					opened := a.conn(t, "the connection", func(c conn) bool { return c.Local == local.String() && c.State == "closed" })
					if !opened.Encrypted || opened.Remote != to.String() {
						t.Errorf("%s: client: %v", f.name, opened)
					}
					taken := b.conn(t, "its session", func(c conn) bool { return is(c.SessionID, *opened.SessionID) })
					if taken.Local != netip.AddrPortFrom(n.b.addr(f.v6), 80).String() {
						t.Errorf("%s: server: %v", f.name, taken)
					}
					from := server.clients()
					if last := from[len(from)-1]; last.String() != taken.Remote {
						t.Errorf("%s: the service saw %v as client, conns says %v", f.name, last, taken)
					}
					remote, _ := netip.ParseAddrPort(taken.Remote) // valid: conns has looked
					if translated := remote.Addr() != local.Addr(); translated != (c.name != "of the server") {
						t.Errorf("%s: the client is %v here and %v there", f.name, local, remote)
					}
				}
			})
		}
	}
}
