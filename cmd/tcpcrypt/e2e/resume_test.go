package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// Two daemons resume sessions: RFC 8548, section 3.5.

// withRule puts a line into every rule of a configuration.
func withRule(config, line string) string {
	for _, policy := range []string{opportunistic, require} {
		policy = "policy = \"" + policy + "\"\n"
		config = strings.ReplaceAll(config, policy, policy+line+"\n")
	}
	return config
}

// A resumer makes connections between two daemons, one after another.
type resumer struct {
	*network
	ctlA, ctlB *daemon
	server     *transferServer
}

func newResumer(t *testing.T, o networkOptions, configA, configB string) *resumer {
	t.Helper()
	r := &resumer{network: newNetwork(t, o)}
	r.ctlA, r.ctlB = r.a.up(t, configA), r.b.up(t, configB)
	r.server = r.b.serveTransfers(t, 80)
	return r
}

// next moves data over one more connection, wants the daemons to agree on what it was,
// and returns how the client's told of it.
func (r *resumer) next(t *testing.T, from netip.AddrPort, v6, resumed bool) conn {
	t.Helper()
	app, err := r.a.dialFrom(soon(t), from, netip.AddrPortFrom(r.b.addr(v6), 80))
	if err != nil {
		t.Fatal(err)
	}
	local := app.LocalAddr().String()
	if err := transferOver(soon(t), app, 30_000, 30_000); err != nil {
		t.Fatal(err)
	}
	opened := r.ctlA.conn(t, "the connection", func(c conn) bool { return c.Local == local && c.State == "closed" })
	if !opened.Encrypted || opened.SessionID == nil {
		t.Fatalf("client: %v, want it encrypted", opened)
	}
	taken := r.ctlB.conn(t, "its session", func(c conn) bool { return is(c.SessionID, *opened.SessionID) })
	want := "23"
	if resumed {
		want = "a3"
	}
	if opened.Resumed != resumed || taken.Resumed != resumed || !strings.HasPrefix(*opened.SessionID, want) {
		t.Errorf("client %v, server %v; want resumed: %t", opened, taken, resumed)
	}
	if taken.BytesReceived != opened.BytesSent || taken.BytesSent != opened.BytesReceived {
		t.Errorf("client %v, server %v", opened, taken)
	}
	return opened
}

func TestSecondConnectionIsResumed(t *testing.T) {
	t.Parallel()
	r := newResumer(t, networkOptions{capture: true}, everything(require, ""), everything(require, ""))
	ids := make(map[string]bool)
	var locals []string // of what is resumed
	for _, f := range families {
		first := r.next(t, netip.AddrPort{}, f.v6, false)
		ids[*first.SessionID] = true
		for range 3 {
			c := r.next(t, netip.AddrPort{}, f.v6, true)
			if ids[*c.SessionID] {
				t.Errorf("%s: a session id twice: %v", f.name, c)
			}
			ids[*c.SessionID] = true
			if !is(c.TEP, *first.TEP) || !is(c.AEAD, *first.AEAD) || !is(c.Role, *first.Role) {
				t.Errorf("%s: %v, the first was %v", f.name, c, first)
			}
			locals = append(locals, c.Local)
		}
	}
	r.finish(t)
	flows := byFlow(segments(r.captured(t, "b"), 80))
	resumed := 0
	for _, all := range flows {
		if checkResumed(t, all, 8) {
			resumed++
		}
	}
	if resumed != len(locals) {
		t.Errorf("%d connections without Init on the wire, want %d", resumed, len(locals))
	}
	if bytes.Contains(bytes.Join(r.captured(t, "a"), nil), []byte("plain"+"text")) {
		t.Error("the wire carries plaintext")
	}
}

// resumption finds the data of a resumption suboption in a SYN's option.
func resumption(t *testing.T, s *wirepeer.Segment) []byte {
	t.Helper()
	subs, err := wirepeer.ParseENO(s.ENO())
	if err != nil {
		t.Fatalf("%v: %v", s, err)
	}
	for _, sub := range subs {
		if sub.V && len(sub.Data) >= 9 {
			return sub.Data
		}
	}
	return nil
}

// checkResumed reports whether the server has agreed to resume, and holds the segments
// of the connection against that: no Init, and the usual options of TCP in the SYN.
func checkResumed(t *testing.T, all []wirepeer.Segment, nonce int) bool {
	t.Helper()
	var offer, answer []byte
	inits, opener := 0, all[0].Src
	var first []byte // of the opener's stream
	for i := range all {
		s := &all[i]
		switch {
		case isSYN(s):
			offer = resumption(t, s)
			for kind, name := range map[byte]string{2: "MSS", 4: "SACK permitted", 8: "timestamps", 3: "window scale"} {
				if !hasOption(s, kind) {
					t.Errorf("no %s in the SYN: %v", name, s)
				}
			}
		case isSYNACK(s):
			answer = resumption(t, s)
		case bytes.HasPrefix(s.Payload, []byte{0x15, 0x10, 0x1a, 0x0e}), bytes.HasPrefix(s.Payload, []byte{0x09, 0x71, 0x05, 0xe0}):
			inits++
		case s.Src == opener && len(s.Payload) > 0 && first == nil:
			first = s.Payload
		}
	}
	for _, data := range [][]byte{offer, answer} {
		if data != nil && len(data) != 9+nonce {
			t.Errorf("suboption data of %d bytes, want 9 and a nonce of %d", len(data), nonce)
		}
	}
	if resumed := answer != nil; resumed == (inits > 0) {
		t.Errorf("answered with resumption: %t, and %d Inits on the wire", resumed, inits)
	}
	if answer != nil && (offer == nil || bytes.Equal(offer[:9], answer[:9])) {
		t.Errorf("offered %x, answered %x", offer, answer)
	}
	return answer != nil
}

func hasOption(s *wirepeer.Segment, kind byte) bool {
	for _, o := range splitOptions(s.Options) {
		if o[0] == kind {
			return true
		}
	}
	return false
}

func TestParallelConnectionsNeverShareASecret(t *testing.T) {
	t.Parallel()
	r := newResumer(t, networkOptions{}, everything(opportunistic, ""), everything(opportunistic, ""))
	r.next(t, netip.AddrPort{}, false, false)
	errs := make([]error, 12)
	parallel(t, 6, len(errs), func(ctx context.Context, i int) {
		_, errs[i] = r.a.transfer(ctx, netip.AddrPortFrom(r.b.Addr4(), 80), 50_000, 50_000)
	})
	if err := errors.Join(errors.Join(errs...), r.server.failures()); err != nil {
		t.Fatal(err)
	}
	resumed := 0
	for _, c := range r.ctlA.conns(t) {
		if c.Resumed {
			resumed++
		}
	}
	if resumed == 0 {
		t.Error("nothing was resumed")
	}
	opened, taken := sessionIDsOf(t, r.ctlA), sessionIDsOf(t, r.ctlB)
	if len(opened) != 1+len(errs) || len(taken) != len(opened) {
		t.Errorf("%d session ids here and %d there, want %d each", len(opened), len(taken), 1+len(errs))
	}
	for id := range opened {
		if !taken[id] {
			t.Errorf("session %s is unknown to the server", id)
		}
	}
}

// A server knows a session by what the client says, not by where it is.
func TestResumptionFromElsewhere(t *testing.T) {
	t.Parallel()
	t.Run("behind a translator", func(t *testing.T) {
		t.Parallel()
		r := newResumer(t, networkOptions{}, everything(require, ""), everything(require, ""))
		r.box(t, masquerade(r.network))
		for _, f := range families {
			r.next(t, netip.AddrPort{}, f.v6, false)
			r.next(t, netip.AddrPort{}, f.v6, true)
			r.unbox(t)
			r.next(t, netip.AddrPort{}, f.v6, true)
			r.box(t, masquerade(r.network))
			r.next(t, netip.AddrPort{}, f.v6, true)
		}
	})
	t.Run("another address of the client", func(t *testing.T) {
		t.Parallel()
		r := newResumer(t, networkOptions{}, everything(require, ""), everything(require, ""))
		other := r.a.Addr4().Next().Next()
		r.a.run(t, "ip", "addr", "add", other.String()+"/24", "dev", "eth0")
		r.next(t, netip.AddrPort{}, false, false)
		r.next(t, netip.AddrPortFrom(other, 0), false, true)
		r.next(t, netip.AddrPort{}, false, true)
	})
}

// flush forgets all, and returns what the command printed.
func (d *daemon) flush(t *testing.T, args ...string) int {
	t.Helper()
	out := strings.TrimSpace(d.node.run(t, program, append([]string{"flush", "--socket", d.node.socket()}, args...)...))
	n, err := strconv.Atoi(out)
	if err != nil {
		t.Fatalf("tcpcrypt flush printed %q, want a number", out)
	}
	return n
}

// What one side has forgotten is made anew within the same handshake.
func TestForgottenSessionsAreMadeAnewAtOnce(t *testing.T) {
	t.Parallel()
	config := everything(require, "")
	for _, c := range []struct {
		name   string
		forget func(t *testing.T, r *resumer)
	}{
		{"flush by the client", func(t *testing.T, r *resumer) {
			t.Helper()
			if n := r.ctlA.flush(t, r.b.Addr4().String()); n != 1 {
				t.Errorf("flushed %d sessions, want 1", n)
			}
		}},
		{"flush by the server", func(t *testing.T, r *resumer) {
			t.Helper()
			if n := r.ctlB.flush(t, "192.0.2.1"); n != 0 {
				t.Errorf("flushed %d sessions of a stranger, want 0", n)
			}
			if n := r.ctlB.flush(t); n != 1 {
				t.Errorf("flushed %d sessions, want 1", n)
			}
		}},
		{"restart of the client", func(t *testing.T, r *resumer) {
			t.Helper()
			r.ctlA.stop(t)
			r.ctlA = r.a.up(t, config)
		}},
		{"restart of the server", func(t *testing.T, r *resumer) {
			t.Helper()
			r.ctlB.stop(t)
			r.ctlB = r.b.up(t, config)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newResumer(t, networkOptions{capture: true}, config, config)
			r.next(t, netip.AddrPort{}, false, false)
			r.next(t, netip.AddrPort{}, false, true)
			c.forget(t, r)
			r.next(t, netip.AddrPort{}, false, false)
			r.next(t, netip.AddrPort{}, false, true)
			r.finish(t)
			for id, all := range byFlow(segments(r.captured(t, "a"), 80)) {
				syns := 0
				for _, s := range all {
					if isSYN(&s) {
						syns++
					}
				}
				if syns != 1 {
					t.Errorf("%v: %d SYNs, want the one handshake", id, syns)
				}
				checkResumed(t, all, 8)
			}
		})
	}
}

func TestRulesForbidResumption(t *testing.T) {
	t.Parallel()
	with, without := everything(opportunistic, ""), withRule(everything(opportunistic, ""), "resumption = false")
	for _, c := range []struct{ name, a, b string }{
		{"the client's", without, with},
		{"the server's", with, without},
		{"both sides'", without, without},
		{"the client's section", everything(opportunistic, "resumption = false"), with},
		{"the server's section", with, everything(opportunistic, "resumption = false")},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newResumer(t, networkOptions{}, c.a, c.b)
			for range 3 {
				r.next(t, netip.AddrPort{}, false, false)
			}
		})
	}
}

func TestNoncesOfEveryLength(t *testing.T) {
	t.Parallel()
	for _, nonce := range []int{0, 3, 8} {
		t.Run(fmt.Sprint(nonce), func(t *testing.T) {
			t.Parallel()
			config := everything(require, fmt.Sprintf("nonce = %d", nonce))
			r := newResumer(t, networkOptions{capture: true}, config, config)
			r.next(t, netip.AddrPort{}, false, false)
			r.next(t, netip.AddrPort{}, false, true)
			r.next(t, netip.AddrPort{}, false, true)
			if warned := strings.Contains(r.ctlA.output(), "nonce"); warned != (nonce == 0) {
				t.Errorf("warned of the nonce: %t\n%s", warned, r.ctlA.output())
			}
			r.finish(t)
			resumed := 0
			for _, all := range byFlow(segments(r.captured(t, "a"), 80)) {
				if checkResumed(t, all, nonce) {
					resumed++
				}
			}
			if resumed != 2 {
				t.Errorf("%d resumed on the wire, want 2", resumed)
			}
		})
	}
}

// What sessions are kept is shown, secrets are not.
func TestSessionsAreListed(t *testing.T) {
	t.Parallel()
	r := newResumer(t, networkOptions{}, everything(opportunistic, ""), everything(opportunistic, ""))
	list := func(d *daemon) string {
		return d.node.run(t, program, "sessions", "--socket", d.node.socket())
	}
	r.next(t, netip.AddrPort{}, false, false)
	if out := list(r.ctlA); !strings.Contains(out, netip.AddrPortFrom(r.b.Addr4(), 80).String()) {
		t.Errorf("client: tcpcrypt sessions does not show the server:\n%s", out)
	}
	if out := list(r.ctlB); !strings.Contains(out, r.a.Addr4().String()) {
		t.Errorf("server: tcpcrypt sessions does not show the client:\n%s", out)
	}
	r.ctlA.flush(t)
	if out := list(r.ctlA); strings.Contains(out, r.b.Addr4().String()) {
		t.Errorf("after flush tcpcrypt sessions shows\n%s", out)
	}
}
