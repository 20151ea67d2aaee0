package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// What policies promise.

func TestRequireAgainstAPlainPeerFailsAndLeaksNothing(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{capture: true})
	d := n.a.up(t, everything(require, ""))
	n.b.listen(t, 80)
	for _, f := range families {
		to := netip.AddrPortFrom(n.b.addr(f.v6), 80)
		client, err := n.a.dial(soon(t), to)
		if err == nil {
			_, _ = client.Write([]byte(marker))
			_ = client.Close()
			t.Errorf("%s: connected, and the peer has no ENO", f.name)
		} else if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: dial: %v, want a refusal", f.name, err)
		}
		got := d.conn(t, "the connection", func(c conn) bool { return c.Remote == to.String() })
		if got.Encrypted || got.State != "closed" || !is(got.Reason, "no-eno") || got.BytesSent != 0 {
			t.Errorf("%s: tcpcrypt conns says %v", f.name, got)
		}
	}
	n.finish(t)
	for _, s := range segments(n.captured(t, "b"), 80) {
		if len(s.Payload) > 0 {
			t.Errorf("something was sent: %v", &s)
		}
	}
}

func TestRequireRefusesPlainClients(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	b := n.b.up(t, everything(require, ""))
	server := n.b.serveTransfers(t, 80)
	for _, f := range families {
		to := netip.AddrPortFrom(n.b.addr(f.v6), 80)
		if local, err := n.a.transfer(soon(t), to, 10, 10); err == nil {
			t.Errorf("%s: a plain client was served, from %v", f.name, local)
		}
		got := b.conn(t, "the connection", func(c conn) bool { return c.Local == to.String() })
		if got.Encrypted || !is(got.Reason, "no-eno") || got.BytesSent != 0 || got.BytesReceived != 0 {
			t.Errorf("%s: tcpcrypt conns says %v", f.name, got)
		}
	}
	if from := server.clients(); len(from) > 0 {
		t.Errorf("the service was reached by %v", from)
	}
	// Local clients are never captured.
	if _, err := n.b.transfer(soon(t), netip.AddrPortFrom(n.b.Addr4(), 80), 10, 10); err != nil {
		t.Errorf("a client on the host itself: %v", err)
	}
}

// Under require, whatever makes ENO fail makes the connection fail.
func TestRequireFailsWhereverENOFails(t *testing.T) {
	t.Parallel()
	o := newOutbound(t, everything(require, `teps = ["curve25519"]`))
	for _, c := range []struct {
		name, reason string
		eno          []byte
	}{
		{"no ENO", "no-eno", nil},
		{"wrong role", "same-role", wirepeer.BuildENO(0x00, 0x23)},
		{"other TEP", "no-common-tep", wirepeer.BuildENO(0x01, 0x21)},
		{"ill-formed", "no-eno", wirepeer.BuildENO(0x01, 0x23, 0x80)},
	} {
		t.Run(c.name, func(t *testing.T) {
			// The peer need not even see the connection established.
			reset, data := make(chan struct{}, 1), make(chan []byte, 1)
			at, _ := o.server(t, false, func() wirepeer.Script {
				return wirepeer.Script{ENO: c.eno, In: func(s *wirepeer.Segment) bool {
					if len(s.Payload) > 0 {
						select {
						case data <- s.Payload:
						default:
						}
					}
					if s.Flags.Has(wirepeer.RST) {
						select {
						case reset <- struct{}{}:
						default:
						}
						return false // so that the listener's script goes on seeing them
					}
					return true
				}}
			})
			if conn, err := o.a.dial(soon(t), at); err == nil {
				_ = conn.Close()
				t.Error("connected")
			}
			select {
			case <-reset:
			case b := <-data:
				t.Errorf("the peer got %q", b)
			case <-soon(t).Done():
				t.Error("the peer was not reset")
			}
			if got := o.daemon.conn(t, "the connection", to(at)); got.Encrypted || !is(got.Reason, c.reason) {
				t.Errorf("tcpcrypt conns says %v, want %s", got, c.reason)
			}
		})
	}
	t.Run("wrong key exchange", func(t *testing.T) {
		at, l := o.server(t, false, func() wirepeer.Script { return wirepeer.Script{Answer: wirepeer.Config{}.Answer} })
		dialled := make(chan error, 1)
		go func() {
			conn, err := o.a.dial(soon(t), at)
			if err == nil {
				_ = conn.Close()
			}
			dialled <- err
		}()
		peer, err := l.Accept(soon(t))
		if err != nil {
			t.Fatal(err)
		}
		// The program's SYN is held until Init2 has come: another connection takes its time.
		other, l2 := o.server(t, false, func() wirepeer.Script { return wirepeer.Script{Answer: wirepeer.Config{}.Answer} })
		exchanged := l2.handshake(wirepeer.Config{})
		o.a.mustDial(t, other)
		exchanged(t)
		select {
		case err := <-dialled:
			t.Fatalf("the program's connect ended before Init2 came: %v", err)
		default:
		}
		peer.Write([]byte("not Init2, whatever it is: long enough to be one, and then some more of it"))
		if err := <-dialled; err == nil {
			t.Error("connected")
		}
	})
	in := newInbound(t, everything(require, `teps = ["curve25519"]`))
	t.Run("ENO stripped from a client's ACK", func(t *testing.T) {
		peer := in.dial(t, false, wirepeer.Script{ENO: wirepeer.BuildENO(0x23), Mark: func(*wirepeer.Segment, bool) bool { return false }})
		peer.Write([]byte("in clear"))
		if err := peer.Ended(soon(t)); !errors.Is(err, wirepeer.ErrReset) {
			t.Errorf("peer: %v, want %v", err, wirepeer.ErrReset)
		}
	})
}

func TestBypassLeavesNoTrace(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{capture: true})
	config := fmt.Sprintf(`[[outbound]]
to = ["%v/32", "%v/128"]
ports = ["80"]
policy = "bypass"

%s`, n.b.Addr4(), n.b.Addr6(), everything(opportunistic, ""))
	// Sections may come in any order, but first match wins.
	n.a.up(t, config)
	n.b.serveTransfers(t, 80)
	n.b.serveTransfers(t, 81)
	for _, port := range []uint16{80, 81} {
		if _, err := n.a.transfer(soon(t), netip.AddrPortFrom(n.b.Addr4(), port), 1000, 1000); err != nil {
			t.Error(err)
		}
	}
	n.finish(t)
	packets := n.captured(t, "a")
	for _, s := range segments(packets, 80) {
		if s.HasENO() {
			t.Errorf("ENO under bypass: %v", &s)
		}
	}
	if all := segments(packets, 81); len(all) == 0 || !all[0].HasENO() {
		t.Error("no ENO where the second rule wants it")
	}
}

// After kill -9 opportunistic connections flow in clear at once; those under require
// fail, and nothing of theirs is on the wire.
func TestKilledDaemonFailsOpenOrClosedByPolicy(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{capture: true})
	config := fmt.Sprintf(`[[outbound]]
to = ["%v/32", "%v/128"]
ports = ["90"]
policy = "require"

%s`, n.b.Addr4(), n.b.Addr6(), everything(opportunistic, ""))
	a := n.a.up(t, config)
	n.b.up(t, everything(opportunistic, ""))
	n.b.serveTransfers(t, 80)
	l := n.b.listen(t, 90)
	var old []*net.TCPConn
	for _, port := range []uint16{90, 91} {
		l := l
		if port == 91 {
			l = n.b.listen(t, port)
		}
		client := n.a.mustDial(t, netip.AddrPortFrom(n.b.Addr4(), port))
		mustWrite(t, "client", client, "hello")
		mustRead(t, "service", accept(t, l), "hello")
		old = append(old, client)
	}

	a.kill(t)
	for _, f := range families {
		if _, err := n.a.transfer(soon(t), netip.AddrPortFrom(n.b.addr(f.v6), 80), 1000, 1000); err != nil {
			t.Errorf("%s: opportunistic, after kill -9: %v", f.name, err)
		}
		conn, err := n.a.dial(soon(t), netip.AddrPortFrom(n.b.addr(f.v6), 90))
		if err == nil {
			_, _ = conn.Write([]byte(marker))
			_ = conn.Close()
		}
		if err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: require, after kill -9: %v, want a failure at once", f.name, err)
		}
	}
	// The tails of established ones stay here. Under opportunistic the program hears of
	// it at its next segment, under require at the next start.
	for _, client := range old {
		_, _ = client.Write([]byte(marker))
	}
	mustReset(t, "opportunistic client", old[1], nil)

	// A new start finds the leftovers, and works.
	a = n.a.up(t, config)
	if _, err := io.ReadAll(old[0]); !errors.Is(err, syscall.ECONNABORTED) { // what SOCK_DESTROY gives
		t.Errorf("require client: %v, want its socket to be aborted", err)
	}
	if _, err := n.a.transfer(soon(t), netip.AddrPortFrom(n.b.Addr4(), 80), 1000, 1000); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	again := n.a.mustDial(t, netip.AddrPortFrom(n.b.Addr4(), 90))
	mustWrite(t, "client", again, "hello")
	mustRead(t, "service", accept(t, l), "hello")
	for _, c := range a.conns(t) {
		if !c.Encrypted {
			t.Errorf("after the restart: %v", c)
		}
	}
	n.finish(t)
	packets := n.captured(t, "a")
	for _, s := range append(segments(packets, 90), segments(packets, 91)...) {
		if bytes.Contains(s.Payload, []byte("plain"+"text")) {
			t.Errorf("in clear: %v", &s)
		}
	}
}
