package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
)

// daemons starts one on a and one on b that encrypt everything they can.
func (n *network) daemons(t *testing.T) (a, b *daemon) {
	t.Helper()
	return n.a.up(t, everything(opportunistic, everyAlgorithm)), n.b.up(t, everything(opportunistic, everyAlgorithm))
}

func TestTransfersOfEverySizeArriveUnchanged(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	a, b := n.daemons(t)
	server := n.b.serveTransfers(t, 80)
	for _, f := range families {
		for _, size := range []struct{ up, down int64 }{
			{0, 0}, {1, 1}, {100_000, 0}, {0, 100_000}, {10_000_000, 10_000_000}, {200_000_000, 0}, {0, 200_000_000},
		} {
			t.Run(fmt.Sprintf("%s, %d up, %d down", f.name, size.up, size.down), func(t *testing.T) {
				to := netip.AddrPortFrom(n.b.addr(f.v6), 80)
				local, err := n.a.transfer(soon(t), to, size.up, size.down)
				if err := errors.Join(err, server.failures()); err != nil {
					t.Fatal(err)
				}
				checkBothEnds(t, a, b, local, to, size.up+8, size.down+32)
			})
		}
	}
}

// checkBothEnds compares what the two daemons tell of one encrypted connection.
func checkBothEnds(t *testing.T, a, b *daemon, local, remote netip.AddrPort, up, down int64) {
	t.Helper()
	opened := a.conn(t, "the connection", func(c conn) bool {
		return c.Local == local.String() && c.Remote == remote.String() && c.State == "closed"
	})
	checkConn(t, opened, conn{Direction: "outbound", Local: local.String(), Remote: remote.String(), Role: ptr("A"),
		TEP: ptr("curve25519"), AEAD: ptr("aes128gcm"), SessionID: opened.SessionID, Resumed: opened.Resumed, BytesSent: up, BytesReceived: down})
	tep := "23"
	if opened.Resumed {
		tep = "a3"
	}
	if opened.SessionID == nil || len(*opened.SessionID) != 66 || (*opened.SessionID)[:2] != tep {
		t.Fatalf("session id of %v: want 66 hex digits that begin with the TEP's, %s", opened, tep)
	}
	taken := b.conn(t, "the session id of "+a.node.Name(), func(c conn) bool { return is(c.SessionID, *opened.SessionID) })
	checkConn(t, taken, conn{Direction: "inbound", Local: remote.String(), Remote: taken.Remote, Role: ptr("B"),
		TEP: ptr("curve25519"), AEAD: ptr("aes128gcm"), SessionID: opened.SessionID, Resumed: opened.Resumed, BytesSent: down, BytesReceived: up})
	if client, err := netip.ParseAddrPort(taken.Remote); err != nil || client.Addr() != local.Addr() {
		t.Errorf("inbound remote is %s, want the client's own address %v", taken.Remote, local.Addr())
	}
}

func TestTwoHundredRequestsTwentyAtATimeAreAllAnswered(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	a, _ := n.daemons(t)
	server := n.b.serveTransfers(t, 80)
	to := netip.AddrPortFrom(n.b.Addr4(), 80)
	errs := make([]error, 200)
	parallel(t, 20, len(errs), func(ctx context.Context, i int) {
		_, errs[i] = n.a.transfer(ctx, to, int64(i*500), int64((len(errs)-i)*500))
	})
	if err := errors.Join(errors.Join(errs...), server.failures()); err != nil {
		t.Fatal(err)
	}
	if ids := sessionIDsOf(t, a); len(ids) != len(errs) {
		t.Errorf("%d session ids, want %d different ones", len(ids), len(errs))
	}
}

// sessionIDsOf lists those of all connections, which have to be encrypted.
func sessionIDsOf(t *testing.T, d *daemon) map[string]bool {
	t.Helper()
	ids := make(map[string]bool)
	for _, c := range d.conns(t) {
		if c.SessionID == nil {
			t.Errorf("host %s: no session id: %v", d.node.Name(), c)
			continue
		}
		ids[*c.SessionID] = true
	}
	return ids
}

// A connection that is over in a millisecond is shown like any other, by both ends.
func TestShortConnectionsAreShownWhole(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	a, b := n.daemons(t)
	server := n.b.serveTransfers(t, 80)
	errs := make([]error, 900) // as many as are kept of closed ones, and some less
	parallel(t, 8, len(errs), func(ctx context.Context, i int) {
		_, errs[i] = n.a.transfer(ctx, netip.AddrPortFrom(n.b.addr(i%2 == 1), 80), 1, 1)
	})
	if err := errors.Join(errors.Join(errs...), server.failures()); err != nil {
		t.Fatal(err)
	}
	opened, taken := sessionIDsOf(t, a), sessionIDsOf(t, b)
	if len(opened) != len(errs) || !maps.Equal(opened, taken) {
		t.Errorf("%d session ids here and %d there, want the same %d", len(opened), len(taken), len(errs))
	}
}

// parallel calls f for 0 to n-1, at most width at a time.
func parallel(t *testing.T, width, n int, f func(ctx context.Context, i int)) {
	t.Helper()
	ctx := soon(t)
	var wg sync.WaitGroup
	next := make(chan int)
	for range width {
		wg.Go(func() {
			for i := range next {
				f(ctx, i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

func TestManyConnectionsAtOnceMoveDataBothWays(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	n.daemons(t)
	server := n.b.serveTransfers(t, 80)
	errs := make([]error, 40)
	parallel(t, len(errs), len(errs), func(ctx context.Context, i int) {
		_, errs[i] = n.a.transfer(ctx, netip.AddrPortFrom(n.b.addr(i%2 == 1), 80), 2_000_000, 2_000_000)
	})
	if err := errors.Join(errors.Join(errs...), server.failures()); err != nil {
		t.Error(err)
	}
}

// The program keeps the host's own address, and the service sees it: nothing of H or S.
func TestBothEndsSeeRealAddresses(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	n.daemons(t)
	server := n.b.serveTransfers(t, 80)
	for _, f := range families {
		to := netip.AddrPortFrom(n.b.addr(f.v6), 80)
		local, err := n.a.transfer(soon(t), to, 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		if local.Addr() != n.a.addr(f.v6) {
			t.Errorf("the program's address is %v, want %v", local.Addr(), n.a.addr(f.v6))
		}
		from := server.clients()
		if last := from[len(from)-1]; last.Addr() != n.a.addr(f.v6) {
			t.Errorf("the service sees %v as client, want %v", last.Addr(), n.a.addr(f.v6))
		}
	}
	t.Run("bound source", func(t *testing.T) {
		from := netip.AddrPortFrom(n.a.Addr4(), 31234)
		conn, err := n.a.dialFrom(soon(t), from, netip.AddrPortFrom(n.b.Addr4(), 80))
		if err != nil {
			t.Fatal(err)
		}
		defer closeQuietly(conn)
		if got := addrPort(conn.LocalAddr()); got != from {
			t.Errorf("the program's address is %v, want %v", got, from)
		}
	})
}

// What the rules do not name is left alone: other ports, other protocols.
func TestWhatNoRuleNamesIsLeftAlone(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{capture: true})
	config := fmt.Sprintf("[[outbound]]\nto = [\"%v/32\"]\nports = [\"80\"]\npolicy = \"opportunistic\"\n", n.b.Addr4())
	a := n.a.up(t, config)
	n.b.serveTransfers(t, 80)
	n.b.serveTransfers(t, 81)
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(n.b.Addr4(), 81), netip.AddrPortFrom(n.b.Addr6(), 80), netip.AddrPortFrom(n.b.Addr4(), 80)} {
		if _, err := n.a.transfer(soon(t), to, 1000, 1000); err != nil {
			t.Errorf("%v: %v", to, err)
		}
	}
	if got := a.conns(t); len(got) != 1 || got[0].Remote != netip.AddrPortFrom(n.b.Addr4(), 80).String() {
		t.Errorf("tcpcrypt conns says %v, want the one connection that a rule names", got)
	}
	n.finish(t)
	packets := n.captured(t, "a")
	if slices.ContainsFunc(segments(packets, 81), hasENO) || !slices.ContainsFunc(segments(packets, 80), hasENO) {
		t.Error("ENO on a port that no rule names, or none where one does")
	}
}
