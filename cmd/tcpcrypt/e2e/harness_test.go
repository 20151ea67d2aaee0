package e2e

import (
	"bytes"
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// The harness itself, without any daemon: what fails here is no fault of the product.
func TestHarnessWithoutDaemons(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{capture: true})
	peers := n.wirePeers(t)
	changed := 0
	n.intercept(t, func(s *wirepeer.Segment) []*wirepeer.Segment {
		changed++
		return []*wirepeer.Segment{s}
	})
	n.b.serveTransfers(t, 80)
	for _, f := range families {
		if _, err := n.a.transfer(soon(t), netip.AddrPortFrom(n.b.addr(f.v6), 80), 1_000_000, 1_000_000); err != nil {
			t.Errorf("%s: kernel to kernel: %v", f.name, err)
		}
		if _, err := n.a.dial(soon(t), netip.AddrPortFrom(n.b.addr(f.v6), 81)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: closed port: %v", f.name, err)
		}

		l, err := peers.Listen(netip.AddrPortFrom(peerAddr(f.v6, 1), 80), func() wirepeer.Script { return wirepeer.Script{} })
		if err != nil {
			t.Fatal(err)
		}
		app := n.a.mustDial(t, netip.AddrPortFrom(peerAddr(f.v6, 1), 80))
		conn, err := l.Accept(soon(t))
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, "kernel", app, "to the peer")
		if got, err := conn.Read(soon(t), 11); string(got) != "to the peer" {
			t.Errorf("%s: peer read %q, %v", f.name, got, err)
		}
		conn.WriteFIN([]byte("to the kernel"))
		mustRead(t, "kernel", app, "to the kernel")
		mustEnd(t, "kernel", app)

		service := n.b.listen(t, 90)
		conn, err = peers.Dial(soon(t), netip.AddrPortFrom(peerAddr(f.v6, 2), 0), netip.AddrPortFrom(n.b.addr(f.v6), 90), wirepeer.Script{ENO: wirepeer.Config{}.Offer()})
		if err != nil {
			t.Fatal(err)
		}
		taken := accept(t, service)
		if from := addrPort(taken.RemoteAddr()); from != conn.Local() {
			t.Errorf("%s: service saw %v, want %v", f.name, from, conn.Local())
		}
		conn.Reset()
		mustReset(t, "service", taken, nil)
		_ = service.Close()
	}
	if changed == 0 {
		t.Error("nothing passed the element in the path")
	}
	n.finish(t)
	packets := n.captured(t, "a")
	if len(segments(packets, 80)) < 100 {
		t.Errorf("captured %d segments to port 80", len(segments(packets, 80)))
	}
	if !bytes.Contains(bytes.Join(packets, nil), []byte("to the kernel")) {
		t.Error("the capture does not hold what passed in clear")
	}
}
