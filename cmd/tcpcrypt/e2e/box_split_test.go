package e2e

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// Boxes that let the option pass in SYNs and not behind them, and what opportunistic
// clients remember of boxes.

const stripNonSYN = "tcp flags & syn == 0 reset tcp option 69"

// stripFirstACK takes the option from the first segment with ACK, and no SYN, of each
// client alone.
const stripFirstACK = `table inet box {
 set met4 { type ipv4_addr . inet_service; flags dynamic; size 1024; timeout 1m; }
 set met6 { type ipv6_addr . inet_service; flags dynamic; size 1024; timeout 1m; }
 chain forward {
  type filter hook forward priority 0;
  tcp dport 80 tcp flags & (syn|ack) == ack ip saddr . tcp sport != @met4 add @met4 { ip saddr . tcp sport } reset tcp option 69
  tcp dport 80 tcp flags & (syn|ack) == ack ip6 saddr . tcp sport != @met6 add @met6 { ip6 saddr . tcp sport } reset tcp option 69
 }
}
`

// A box that passes the option in SYNs and strips it behind them splits the ends: the
// client is committed, the server is not. Neither program may see a byte of that, and
// opportunistic clients learn.
func TestBoxStripsTheOptionFromWhatFollows(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, ruleset string }{
		{"every non-SYN segment", filter(stripNonSYN)},
		{"the first ACK", stripFirstACK},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			everyPolicy(t, func(t *testing.T, n *network, a, b *daemon, policyA, policyB string) {
				t.Helper()
				n.box(t, c.ruleset)
				service := n.b.serveEcho(t)
				to := netip.AddrPortFrom(n.b.Addr4(), 80)
				for range 2 {
					_, err := n.a.echo(soon(t), to, []byte(marker))
					failsClearly(t, err)
				}
				_, err := n.a.echo(soon(t), to, []byte(marker))
				plain := policyA == opportunistic && policyB == opportunistic
				if plain && err != nil {
					t.Errorf("third connection: %v, want it in clear\n%v\n%v", err, a.conns(t), b.conns(t))
				} else if !plain {
					failsClearly(t, err)
				}
				service.clean(t, []byte(marker))
				for _, got := range b.conns(t) {
					if got.Encrypted {
						t.Errorf("server: %v", got)
					}
				}
				if plain {
					n.rememberedAndForgotten(t, a, to)
				}
				n.finish(t)
				if n.markerOnWire(t) != plain {
					t.Errorf("the wire carries plaintext: %t, want %t", !plain, plain)
				}
			})
		})
	}
}

// rememberedAndForgotten looks at what the third connection was made in clear by, and
// takes both the box and the memory away.
func (n *network) rememberedAndForgotten(t *testing.T, a *daemon, to netip.AddrPort) {
	t.Helper()
	got := a.conns(t)
	if last := got[len(got)-1]; last.Encrypted || !is(last.Reason, "fallback") {
		t.Errorf("third connection: %v, want in clear because of fallback", last)
	}
	table := n.a.run(t, program, "remembered", "--socket", n.a.socket())
	if !strings.Contains(table, to.String()) {
		t.Errorf("tcpcrypt remembered does not show %v:\n%s", to, table)
	}
	n.unbox(t)
	if _, err := n.a.echo(soon(t), to, []byte(marker)); err != nil {
		t.Errorf("without the box, still remembered: %v", err)
	}
	if out := strings.TrimSpace(n.a.run(t, program, "flush", to.Addr().String(), "--socket", n.a.socket())); out != "1" {
		t.Errorf("tcpcrypt flush printed %q, want 1", out)
	}
	if out := n.a.run(t, program, "remembered", "--socket", n.a.socket()); strings.Contains(out, to.String()) {
		t.Errorf("after flush tcpcrypt remembered shows\n%s", out)
	}
	local, err := n.a.echo(soon(t), to, []byte("now not in clear"))
	if err != nil {
		t.Errorf("without the box, forgotten: %v", err)
	}
	if last := a.conn(t, "the last connection", func(c conn) bool { return c.Local == local.String() }); !last.Encrypted {
		t.Errorf("after flush: %v, want encrypted", last)
	}
}

// Two SYNs with the option in vain and one without that was answered count as well: the
// third connection there does not wait.
func TestSilentDropsAreRemembered(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{capture: true})
	a, _ := n.daemonsUnder(t, opportunistic, opportunistic, "")
	n.box(t, filter(dropSYN))
	n.b.serveEcho(t)
	to := netip.AddrPortFrom(n.b.Addr4(), 80)
	for range 3 {
		if _, err := n.a.echo(soon(t), to, []byte(marker)); err != nil {
			t.Fatal(err)
		}
	}
	n.rememberedAndForgotten(t, a, to)
	n.finish(t)
	syns := make(map[flowID]int)
	for _, s := range segments(n.captured(t, "a"), 80) {
		if isSYN(&s) && s.HasENO() {
			syns[flowOf(&s)]++
		}
	}
	if len(syns) != 3 { // the first two and the one after the flush
		t.Errorf("%d connections have offered ENO, want 3", len(syns))
	}
}

// A peer behind such a box that answers the SYN-ACK with plaintext, or with nothing.
func TestClientsBehindAStrippingBoxAreServed(t *testing.T) {
	t.Parallel()
	in := newInbound(t, everything(opportunistic, ""))
	never := func(*wirepeer.Segment, bool) bool { return false }
	t.Run("plaintext", func(t *testing.T) {
		peer := in.dial(t, false, wirepeer.Script{ENO: wirepeer.BuildENO(0x23), Mark: never})
		peer.WriteFIN([]byte("in clear"))
		app := accept(t, in.service)
		mustReadAll(t, app, []byte("in clear"))
	})
	t.Run("Init1", func(t *testing.T) {
		peer := in.dial(t, false, wirepeer.Script{ENO: wirepeer.BuildENO(0x23), Mark: never})
		app := accept(t, in.service)
		peer.Write(wirepeer.BuildInit1(wirepeer.Ciphers, make([]byte, 32), make([]byte, 32), nil))
		mustReset(t, "service", app, nil)
		if err := peer.Ended(soon(t)); !errors.Is(err, wirepeer.ErrReset) {
			t.Errorf("peer: %v, want %v", err, wirepeer.ErrReset)
		}
	})
	t.Run("what only begins like Init1", func(t *testing.T) {
		peer := in.dial(t, false, wirepeer.Script{ENO: wirepeer.BuildENO(0x23), Mark: never})
		peer.Write([]byte{0x15, 0x10})
		app := accept(t, in.service)
		peer.WriteFIN([]byte{0x1a, 0x0f, 0})
		mustReadAll(t, app, []byte{0x15, 0x10, 0x1a, 0x0f, 0})
	})
}
