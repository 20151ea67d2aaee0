//go:build linux

package routing

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
)

func chainsText(chains ...nftChain) string {
	var b strings.Builder
	for _, c := range chains {
		b.WriteString(c.String())
	}
	return b.String()
}

// testSets stand for those in the kernel, where only the name matters.
func testSets() guardSets {
	return guardSets{&nftables.Set{Name: "captured_ports"}, &nftables.Set{Name: "require_outbound"}, &nftables.Set{Name: "require_inbound"}}
}

func TestNATReadsAs(t *testing.T) {
	c := linkConfig()
	c.Host6, c.Stack6 = netip.Addr{}, netip.Addr{}
	n := &nat{closed: map[int]*nftables.Set{4: {Name: "closed4"}}}
	got := chainsText(append(append(n.forwardChains(c, nil), outsideChain(c), sourceChain(c)), inboundChain(c, &nftables.Set{Name: "inbound_ports"}))...)
	want := `chain strangers {
	oifname "tcpcrypt0" ct direction reply return comment "answers to S"
	oifname "tcpcrypt0" ct status dnat ip daddr 198.18.0.2 return comment "inbound"
	drop comment "not a router because of us"
}
chain forward {
	type filter hook forward priority 0; policy accept;
	iifname "tcpcrypt0" ip saddr 198.18.0.2 ct state invalid drop comment "would leave untranslated"
	iifname "tcpcrypt0" return
	meta nfproto ipv4 iifname @closed4 jump strangers comment "would not be forwarded without us"
}
chain outside {
	type filter hook prerouting priority -300; policy accept;
	iifname != "tcpcrypt0" iifname != "lo" ip daddr 198.18.0.2 drop comment "the link is not reachable from outside"
	iifname != "tcpcrypt0" iifname != "lo" ip daddr 198.18.0.1 drop comment "the link is not reachable from outside"
	iifname != "tcpcrypt0" iifname != "lo" ip saddr 198.18.0.2 drop comment "nobody else has the link's addresses"
	iifname != "tcpcrypt0" iifname != "lo" ip saddr 198.18.0.1 drop comment "nobody else has the link's addresses"
}
chain source {
	type nat hook postrouting priority 90; policy accept;
	oifname "tcpcrypt0" meta nfproto ipv4 snat ip to ip saddr comment "the client's own address"
	oifname != "tcpcrypt0" ip saddr 198.18.0.2 masquerade comment "the way out"
}
chain inbound {
	type nat hook prerouting priority -110; policy accept;
	iifname != "tcpcrypt0" iifname != "lo" meta nfproto ipv4 fib daddr type local tcp flags & (fin | syn | rst | ack) == syn tcp dport @inbound_ports dnat ip to 198.18.0.2 comment "the way in"
}
`
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestGuardReadsAs(t *testing.T) {
	c := linkConfig()
	c.Host6, c.Stack6 = netip.Addr{}, netip.Addr{}
	c.Outbound = []Outbound{
		{To: prefixes("10.1.0.0/16"), Policy: Bypass},
		{To: prefixes("10.0.0.0/8"), Except: prefixes("10.2.0.0/16"), Ports: ports(t, "80", "1024-65535"), Policy: Require},
		{To: prefixes("0.0.0.0/0"), Policy: Opportunistic},
	}
	c.Inbound = []Inbound{{Ports: ports(t, "80"), Policy: Require}}
	got := chainsText(guardChains(c, compile(c, slot0), testSets())...)
	want := `chain opened {
	type filter hook postrouting priority -150; policy accept;
	oifname "tcpcrypt0" tcp flags & (fin | syn | rst | ack) == syn ct mark set ct mark or 0x8000000 comment "captured"
}
chain output {
	type filter hook output priority 0; policy accept;
	oifname != "tcpcrypt0" oifname != "lo" ct direction original ct mark & 0x8000000 != 0 reject with tcp reset comment "captured: the device or nowhere"
}
chain forward {
	type filter hook forward priority 0; policy accept;
	iifname != "tcpcrypt0" oifname != "tcpcrypt0" ct mark & 0x8000000 != 0 reject with tcp reset comment "captured: the device or nowhere"
	oifname != "tcpcrypt0" ip daddr 198.18.0.2 reject with tcp reset comment "nobody there"
}
chain passing {
	type filter hook prerouting priority -150; policy accept;
	iifname != "tcpcrypt0" iifname != "lo" ct mark & 0x4000000 != 0 meta mark set meta mark or 0x8000000 comment "older than the capture"
}
chain answers {
	type route hook output priority -150; policy accept;
	oifname "tcpcrypt0" ct mark & 0x4000000 != 0 meta mark set meta mark or 0x8000000 comment "older than the capture"
	oifname "tcpcrypt0" ct direction reply tcp sport != @require_inbound ip saddr != 198.18.0.1 meta mark set meta mark or 0x8000000 comment "opened by the other end"
}
chain arriving {
	type filter hook prerouting priority -150; policy accept;
	iifname != "tcpcrypt0" iifname != "lo" tcp sport @captured_ports fib daddr type local meta mark set meta mark or 0x8000000 comment "not captured on the way back"
}
chain routed_answers {
	type filter hook prerouting priority -150; policy accept;
	iifname != "tcpcrypt0" iifname != "lo" ct direction reply tcp dport @captured_ports meta mark set meta mark or 0x8000000 comment "opened by the other end"
}
chain closed4_1 {
	ip saddr 198.18.0.1 drop
}
chain closed4_2 {
	tcp sport 80 drop
}
chain closed4_3 {
	meta mark & 0x8000000 != 0 accept
}
chain closed4_10 {
	ip daddr 10.1.0.0/16 accept
}
chain closed4_11 {
	ip daddr 10.2.0.0/16 return
	ip daddr 10.0.0.0/8 tcp dport 80 reject with icmpx admin-prohibited
	tcp dport 1-1023 return
	ip daddr 10.0.0.0/8 reject with icmpx admin-prohibited
}
chain closed_output {
	type filter hook output priority 0; policy accept;
	oifname "tcpcrypt0" accept
	oifname "lo" accept
	meta nfproto ipv4 meta l4proto tcp jump closed4_1
	meta nfproto ipv4 tcp sport @require_inbound jump closed4_2
	meta nfproto ipv4 meta l4proto tcp jump closed4_3
	meta nfproto ipv4 tcp dport @require_outbound jump closed4_10
	meta nfproto ipv4 tcp dport @require_outbound jump closed4_11
}
chain closed_forward {
	type filter hook forward priority 0; policy accept;
	oifname "tcpcrypt0" accept
	iifname "tcpcrypt0" accept
	meta nfproto ipv4 meta l4proto tcp jump closed4_3
	meta nfproto ipv4 tcp dport @require_outbound jump closed4_10
	meta nfproto ipv4 tcp dport @require_outbound jump closed4_11
}
chain sysctls {
}
`
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// What we show is what nft understands.
func TestTextIsNftSyntax(t *testing.T) {
	if !inNetns(t) {
		return
	}
	c := fullConfig(t)
	n := &nat{closed: map[int]*nftables.Set{4: {Name: "closed4"}, 6: {Name: "closed6"}}}
	chains := append(n.forwardChains(c, nil), outsideChain(c), sourceChain(c), inboundChain(c, &nftables.Set{Name: "inbound_ports"}))
	guard := guardChains(c, compile(c, slot0), testSets())
	var text strings.Builder
	for i, cs := range [][]nftChain{chains, guard} {
		fmt.Fprintf(&text, "table inet t%d {\n", i)
		for _, name := range []string{"inbound_ports", "captured_ports", "require_outbound", "require_inbound"} {
			fmt.Fprintf(&text, "set %s {\n type inet_service\n flags interval\n}\n", name)
		}
		for _, name := range []string{"closed4", "closed6"} {
			fmt.Fprintf(&text, "set %s {\n type ifname\n}\n", name)
		}
		text.WriteString(chainsText(cs...) + "}\n")
	}
	cmd := exec.Command("nft", "-c", "-f", "-")
	cmd.Stdin = strings.NewReader(text.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("nft: %v\n%s\n%s", err, out, text.String())
	}
}

func TestNotes(t *testing.T) {
	for _, s := range []setting{
		{"net/ipv4/conf/eth0/forwarding", "0", "1"},
		{"net/ipv4/conf/a=b->c..d/forwarding", "0", "1"},
	} {
		if got, err := parseNote(fmt.Sprintf("%s=%s->%s", s.path, s.old, s.new)); err != nil || got != s {
			t.Errorf("parseNote: %+v, %v, want %+v", got, err, s)
		}
	}
	for _, s := range []string{"", "=", "net/x", "net/x=1", "kernel/panic=0->1", "net/../kernel/panic=0->1"} {
		if got, err := parseNote(s); err == nil {
			t.Errorf("parseNote(%q) = %+v", s, got)
		}
	}
}
