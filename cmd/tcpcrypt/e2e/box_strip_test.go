package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// Boxes that drop SYNs with an option they do not know, or take the option out.

// Rules of nftables for them.
const (
	dropSYN         = "tcp flags & (syn|ack) == syn tcp option 69 exists drop"
	stripSYN        = "tcp flags & (syn|ack) == syn reset tcp option 69"
	stripSYNACK     = "tcp flags & (syn|ack) == (syn|ack) reset tcp option 69"
	stripEverything = "meta l4proto tcp reset tcp option 69"
)

func TestBoxDropsSYNsWithTheOption(t *testing.T) {
	t.Parallel()
	everyPolicy(t, func(t *testing.T, n *network, a, b *daemon, policyA, policyB string) {
		t.Helper()
		n.box(t, filter(dropSYN))
		n.a.run(t, "sysctl", "-qw", "net.ipv4.tcp_syn_retries=2")
		service := n.b.serveEcho(t)
		start := time.Now()
		local, err := n.a.echo(soon(t), netip.AddrPortFrom(n.b.Addr4(), 80), []byte(marker))
		took := time.Since(start)
		got := a.conn(t, "the connection", ofService)
		switch {
		case policyA == require:
			if err == nil || got.Encrypted || got.BytesSent > 0 {
				t.Errorf("program: %v, conns: %v; want a failure", err, got)
			}
			if there := b.conns(t); len(there) > 0 {
				t.Errorf("server: %v, want nothing", there)
			}
		case policyB == require:
			failsClearly(t, err)
		case err != nil:
			t.Errorf("program: %v", err)
		case took > 10*time.Second: // two SYNs, a second and two: the third has no option
			t.Errorf("in clear after %v, want 3 s", took)
		default:
			there := b.conn(t, "the connection", ofService)
			if got.Local != local.String() || got.Encrypted || !is(got.Reason, "fallback") || there.Encrypted || !is(there.Reason, "no-eno") {
				t.Errorf("client %v, server %v; want fallback and no-eno", got, there)
			}
		}
		service.clean(t, []byte(marker))
		n.finish(t)
		with, without := 0, 0
		for _, s := range segments(n.captured(t, "a"), 80) {
			switch {
			case !isSYN(&s):
			case s.HasENO():
				with++
			default:
				without++
			}
		}
		if with < 2 || (without > 0) != (policyA == opportunistic) {
			t.Errorf("%d SYNs with the option and %d without", with, without)
		}
		if plain := policyA == opportunistic && policyB == opportunistic; n.markerOnWire(t) != plain {
			t.Errorf("the wire carries plaintext: %t, want %t", !plain, plain)
		}
	})
}

// What the box takes from SYNs is missed at once: in clear, or not at all.
func TestBoxStripsTheOptionFromSYNs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, rule, reasonA, reasonB string }{
		{"SYN", stripSYN, "no-eno", "no-eno"},
		{"SYN-ACK", stripSYNACK, "no-eno", "stripped"},
		{"everything", stripEverything, "no-eno", "no-eno"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			everyPolicy(t, func(t *testing.T, n *network, a, b *daemon, policyA, policyB string) {
				t.Helper()
				n.box(t, filter(c.rule))
				service := n.b.serveEcho(t)
				plain := policyA == opportunistic && policyB == opportunistic
				for _, f := range families {
					data := []byte(strings.Repeat(marker, 2000))
					_, err := n.a.echo(soon(t), netip.AddrPortFrom(n.b.addr(f.v6), 80), data)
					if !plain {
						failsClearly(t, err)
					} else if err != nil {
						t.Errorf("%s: %v", f.name, err)
					}
					service.clean(t, data)
				}
				for _, got := range a.conns(t) {
					if got.Encrypted || plain && !is(got.Reason, c.reasonA) {
						t.Errorf("client: %v, want in clear because of %s", got, c.reasonA)
					}
				}
				for _, got := range b.conns(t) {
					// The peer's reset may come before the missing option is noticed.
					if got.Encrypted || plain && !is(got.Reason, c.reasonB) {
						t.Errorf("server: %v, want in clear because of %s", got, c.reasonB)
					}
				}
				n.finish(t)
				// An opportunistic client may speak in clear before it is refused.
				if found := n.markerOnWire(t); found != plain && (plain || policyA == require) {
					t.Errorf("the wire carries plaintext: %t, want %t", found, plain)
				}
			})
		})
	}
}
