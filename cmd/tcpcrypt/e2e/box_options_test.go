package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// Boxes and peers that send the option back, move it or surround it.

// A peer or a box that echoes unknown options back claims the same role as ours.
func TestEchoedOptionIsNotAnAnswer(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{opportunistic, require} {
		t.Run("by the peer, "+policy, func(t *testing.T) {
			t.Parallel()
			o := newOutbound(t, everything(policy, everyAlgorithm))
			at, l := o.server(t, false, func() wirepeer.Script {
				return wirepeer.Script{Answer: func(syn *wirepeer.Segment) []byte { return syn.ENO() }}
			})
			app, err := o.a.dial(soon(t), at)
			if policy == require {
				failsClearly(t, err)
			} else if err != nil {
				t.Fatal(err)
			} else {
				defer closeQuietly(app)
				setDeadline(t, app)
				peer, err := l.Accept(soon(t))
				if err != nil {
					t.Fatal(err)
				}
				mustWrite(t, "program", app, "in clear")
				if got, err := peer.Read(soon(t), 8); string(got) != "in clear" {
					t.Errorf("peer read %q, %v", got, err)
				}
				peer.WriteFIN([]byte("here too"))
				mustReadAll(t, app, []byte("here too"))
			}
			if got := o.daemon.conn(t, "the connection", to(at)); got.Encrypted || !is(got.Reason, "same-role") {
				t.Errorf("tcpcrypt conns says %v, want in clear because of same-role", got)
			}
		})
	}
	t.Run("by a box", func(t *testing.T) {
		t.Parallel()
		for _, p := range boxPolicies {
			t.Run(fmt.Sprintf("client %s, server %s", p.a, p.b), func(t *testing.T) {
				t.Parallel()
				n := newNetwork(t, networkOptions{})
				a, b := n.daemonsUnder(t, p.a, p.b, "")
				service := n.b.serveEcho(t)
				var offer []byte
				n.intercept(t, func(s *wirepeer.Segment) []*wirepeer.Segment {
					switch eno := s.ENO(); {
					case isSYN(s):
						offer = eno
					case isSYNACK(s) && eno != nil && len(eno) == len(offer):
						copy(s.Options[bytes.Index(s.Options, eno):], offer)
					case isSYNACK(s) && len(eno) > 0: // shorter or longer: rebuild
						s.Options = slices.Concat(withoutENO(s.Options), offer)
					}
					return []*wirepeer.Segment{s}
				})
				_, err := n.a.echo(soon(t), netip.AddrPortFrom(n.b.Addr4(), 80), []byte(marker))
				if p.a == require || p.b == require {
					failsClearly(t, err)
				} else if err != nil {
					t.Error(err)
				}
				service.clean(t, []byte(marker))
				if got := a.conn(t, "the connection", ofService); got.Encrypted || !is(got.Reason, "same-role") {
					t.Errorf("client: %v, want in clear because of same-role", got)
				}
				if p.a == require {
					return // the client ends it before the server has a connection
				}
				if got := b.conn(t, "the connection", ofService); got.Encrypted || !is(got.Reason, "stripped") {
					t.Errorf("server: %v, want in clear because of stripped", got)
				}
			})
		}
	})
}

// withoutENO leaves ENO options and padding out.
func withoutENO(area []byte) (out []byte) {
	for _, o := range splitOptions(area) {
		if o[0] != wirepeer.OptionENO {
			out = append(out, o...)
		}
	}
	return out
}

// splitOptions lists the options of a header, padding left out.
func splitOptions(area []byte) (all [][]byte) {
	for len(area) > 0 && area[0] != 0 {
		if area[0] == 1 {
			area = area[1:]
			continue
		}
		if len(area) < 2 || area[1] < 2 || int(area[1]) > len(area) {
			return all
		}
		n := int(area[1])
		all = append(all, slices.Clone(area[:n]))
		area = area[n:]
	}
	return all
}

// A box may write the options anew: other order, other padding.
func TestOptionsMayBeMovedAndPadded(t *testing.T) {
	t.Parallel()
	const room = 40
	pad := func(all [][]byte, between int) (area []byte) {
		for _, o := range all {
			area = append(append(area, bytes.Repeat([]byte{1}, between)...), o...)
		}
		return area
	}
	for _, c := range []struct {
		name    string
		rewrite func(all [][]byte) []byte
	}{
		{"ENO first", func(all [][]byte) []byte {
			slices.SortStableFunc(all, func(x, y []byte) int { return int(y[0]) - int(x[0]) })
			return pad(all, 0)
		}},
		{"reversed", func(all [][]byte) []byte {
			slices.Reverse(all)
			return pad(all, 0)
		}},
		{"NOPs before each", func(all [][]byte) []byte { return pad(all, 1) }},
		{"NOPs to the end", func(all [][]byte) []byte {
			area := pad(all, 0)
			return append(area, bytes.Repeat([]byte{1}, room-len(area))...)
		}},
		{"end of list and rubbish behind it", func(all [][]byte) []byte {
			area := pad(all, 0)
			if len(area) < room {
				area = append(area, 0)
			}
			for len(area) < room {
				area = append(area, wirepeer.OptionENO)
			}
			return area
		}},
		{"an unknown option beside", func(all [][]byte) []byte {
			if area := pad(all, 0); len(area) > room-4 {
				return area
			}
			return pad(append([][]byte{{253, 4, 69, 2}}, all...), 0)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t, networkOptions{})
			a, b := n.daemonsUnder(t, require, require, everyAlgorithm)
			n.b.serveTransfers(t, 80)
			rewritten := 0
			n.intercept(t, func(s *wirepeer.Segment) []*wirepeer.Segment {
				if area := c.rewrite(splitOptions(s.Options)); len(area) <= room && s.HasENO() {
					s.Options = area
					rewritten++
				}
				return []*wirepeer.Segment{s}
			})
			for _, f := range families {
				to := netip.AddrPortFrom(n.b.addr(f.v6), 80)
				local, err := n.a.transfer(soon(t), to, 100_000, 100_000)
				if err != nil {
					t.Fatalf("%s: %v", f.name, err)
				}
				checkBothEnds(t, a, b, local, to, 100_008, 100_032)
			}
			if rewritten < 6 {
				t.Errorf("%d segments rewritten, want SYN, SYN-ACK and ACK of both", rewritten)
			}
		})
	}
}

// Explicit congestion notification is negotiated by flags of the same segments.
func TestECNDoesNotDisturb(t *testing.T) {
	t.Parallel()
	const ece, cwr wirepeer.Flags = 1 << 6, 1 << 7
	t.Run("kernels", func(t *testing.T) {
		t.Parallel()
		n := newNetwork(t, networkOptions{plainC: true})
		a, b := n.daemonsUnder(t, opportunistic, opportunistic, "")
		c := n.node(t, "c", t.TempDir())
		for _, h := range []*node{n.a, n.b, c} {
			h.run(t, "sysctl", "-qw", "net.ipv4.tcp_ecn=1")
		}
		n.b.serveTransfers(t, 80)
		c.serveTransfers(t, 80)
		for _, f := range families {
			to := netip.AddrPortFrom(n.b.addr(f.v6), 80)
			local, err := n.a.transfer(soon(t), to, 500_000, 500_000)
			if err != nil {
				t.Fatalf("%s: %v", f.name, err)
			}
			checkBothEnds(t, a, b, local, to, 500_008, 500_032)
			if _, err := n.a.transfer(soon(t), netip.AddrPortFrom(c.addr(f.v6), 80), 500_000, 500_000); err != nil {
				t.Errorf("%s: to a stock kernel: %v", f.name, err)
			}
			if _, err := c.transfer(soon(t), to, 500_000, 500_000); err != nil { // its SYN has ECE and CWR
				t.Errorf("%s: from a stock kernel: %v", f.name, err)
			}
		}
	})
	// SYN with ECE and CWR, data with CWR, acknowledgements with ECE.
	flags := func(s *wirepeer.Segment) []*wirepeer.Segment {
		switch {
		case isSYN(s):
			s.Flags |= ece | cwr
		case len(s.Payload) > 0:
			s.Flags |= cwr
		default:
			s.Flags |= ece
		}
		return []*wirepeer.Segment{s}
	}
	for _, policy := range []string{opportunistic, require} {
		t.Run("peer opens, "+policy, func(t *testing.T) {
			t.Parallel()
			in := newInbound(t, everything(policy, ""))
			app, s := in.encrypted(t, wirepeer.Script{Out: flags}, wirepeer.Config{})
			s.SendData(streamBytes(100_000), wirepeer.MaxData)
			s.Send(wirepeer.Frame{FIN: true})
			mustReadAll(t, app, streamBytes(100_000))
			if policy == require {
				peer, err := in.peers.Open(netip.AddrPortFrom(peerAddr(false, 1), 0), netip.AddrPortFrom(in.b.Addr4(), 80), wirepeer.Script{Out: flags})
				if err != nil {
					t.Fatal(err)
				}
				if err := peer.Ended(soon(t)); !errors.Is(err, wirepeer.ErrRefused) && !errors.Is(err, wirepeer.ErrReset) {
					t.Errorf("ECN without ENO: %v, want a refusal", err)
				}
			}
		})
		t.Run("peer answers, "+policy, func(t *testing.T) {
			t.Parallel()
			o := newOutbound(t, everything(policy, ""))
			at, l := o.server(t, false, func() wirepeer.Script {
				return wirepeer.Script{Answer: wirepeer.Config{}.Answer, Out: flags}
			})
			exchanged := l.handshake(wirepeer.Config{})
			app := o.a.mustDial(t, at)
			exchange(t, app, exchanged(t), streamBytes(100_000), streamBytes(100_000))
		})
	}
}

// A box that answers in the peer's place with a reset is not the end of the program's
// patience, nor of ours.
func TestResetOfTheSYNIsTheProgramsAnswer(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	n.a.up(t, everything(opportunistic, ""))
	n.b.serveEcho(t)
	n.box(t, filter("tcp option 69 exists reject with tcp reset"))
	if _, err := n.a.echo(soon(t), netip.AddrPortFrom(n.b.Addr4(), 80), []byte(marker)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("program: %v, want %v", err, syscall.ECONNREFUSED)
	}
}
