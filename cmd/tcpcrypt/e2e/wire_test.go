package e2e

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// What a capture of the wire shows.

// marker is a text that must not be seen where it is encrypted. Its halves keep this
// file out of any capture of itself.
var marker = strings.Repeat("plain"+"text marker, ", 4)

// say moves the marker both ways over a new connection from a to that address.
func (n *network) say(t *testing.T, l *net.TCPListener, to netip.AddrPort) {
	t.Helper()
	client := n.a.mustDial(t, to)
	server := accept(t, l)
	for range 50 {
		mustWrite(t, "client", client, marker)
		mustRead(t, "service", server, marker)
		mustWrite(t, "service", server, marker)
		mustRead(t, "client", client, marker)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	mustEnd(t, "service", server)
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWireCarriesENOWhereItBelongsAndNoPlaintext(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{capture: true})
	n.daemons(t)
	l := n.b.listen(t, 80)
	for _, f := range families {
		n.say(t, l, netip.AddrPortFrom(n.b.addr(f.v6), 80))
	}
	n.finish(t)
	for _, host := range []string{"a", "b"} {
		packets := n.captured(t, host)
		if bytes.Contains(bytes.Join(packets, nil), []byte("plain"+"text")) {
			t.Errorf("link of host %s: the wire carries plaintext", host)
		}
		flows := byFlow(segments(packets, 80))
		if len(flows) != 2 {
			t.Fatalf("link of host %s: %d connections, want 2", host, len(flows))
		}
		for _, all := range flows {
			checkENO(t, host, all)
		}
	}
}

// checkENO holds one encrypted connection's segments against RFC 8547, section 4.6.
func checkENO(t *testing.T, host string, all []wirepeer.Segment) {
	t.Helper()
	var opener, listener *wirepeer.Segment // SYN, SYN-ACK
	listenerSpoke := false                 // the listener's first non-SYN segment has passed
	marked := 0
	for i := range all {
		s := &all[i]
		fromOpener := opener == nil || s.Src == opener.Src
		want := false
		switch {
		case s.Flags&(wirepeer.SYN|wirepeer.ACK) == wirepeer.SYN:
			if opener == nil {
				opener = s
			}
			want = true
			if !bytes.Equal(s.ENO(), opener.ENO()) || len(s.Payload) > 0 {
				t.Errorf("link of host %s: SYN %v, the first was %v", host, s, opener)
			}
		case s.Flags.Has(wirepeer.SYN):
			if listener == nil {
				listener = s
			}
			want = true
			if !bytes.Equal(s.ENO(), listener.ENO()) || len(s.Payload) > 0 {
				t.Errorf("link of host %s: SYN-ACK %v, the first was %v", host, s, listener)
			}
		case s.Flags.Has(wirepeer.RST):
			continue // needs none
		case fromOpener && !listenerSpoke:
			want = true
			marked++
		case !fromOpener:
			listenerSpoke = true
		case listener != nil && s.Ack == listener.Seq+1:
			// It passed after the listener's first segment, but need not have been sent
			// after that had arrived.
			continue
		}
		if s.HasENO() != want {
			t.Errorf("link of host %s: has ENO: %t, want %t: %v", host, s.HasENO(), want, s)
		}
		if eno := s.ENO(); want && !s.Flags.Has(wirepeer.SYN) && len(eno) != 2 {
			t.Errorf("link of host %s: non-SYN form is %x, want 4502", host, eno)
		}
	}
	if opener == nil || listener == nil || marked < 2 {
		t.Fatalf("link of host %s: the capture has no whole handshake: %d marked segments", host, marked)
	}
	if got := opener.ENO(); !bytes.HasPrefix(got, []byte{69}) || !bytes.Contains(got, []byte{0x23}) {
		t.Errorf("link of host %s: the SYN offers %x", host, got)
	}
	if got := listener.ENO(); !bytes.Equal(got, []byte{69, 4, 1, 0x23}) {
		t.Errorf("link of host %s: the SYN-ACK answers %x, want 45040123", host, got)
	}
}

func TestStockKernelsAreNotDisturbed(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{capture: true})
	a := n.a.up(t, everything(opportunistic, everyAlgorithm))
	l := n.b.listen(t, 80)
	for _, f := range families {
		n.say(t, l, netip.AddrPortFrom(n.b.addr(f.v6), 80))
	}
	n.b.serveTransfers(t, 81)
	if _, err := n.a.transfer(soon(t), netip.AddrPortFrom(n.b.Addr4(), 81), 10_000_000, 10_000_000); err != nil {
		t.Error(err)
	}
	for _, c := range a.conns(t) {
		if c.Encrypted || !is(c.Reason, "no-eno") {
			t.Errorf("%v: want in clear because of no-eno", c)
		}
	}
	// The other way round: the stock kernel opens.
	l = n.a.listen(t, 82)
	n.a, n.b = n.b, n.a
	for _, f := range families {
		n.say(t, l, netip.AddrPortFrom(n.b.addr(f.v6), 82))
	}
	for _, c := range a.conns(t) {
		if c.Encrypted || !is(c.Reason, "no-eno") {
			t.Errorf("%v: want in clear because of no-eno", c)
		}
	}
	n.finish(t)
	packets := n.captured(t, "b")
	for _, s := range append(segments(packets, 80), segments(packets, 81)...) {
		if want := s.Flags&(wirepeer.SYN|wirepeer.ACK) == wirepeer.SYN; s.HasENO() != want {
			t.Errorf("has ENO: %t, want %t: %v", s.HasENO(), want, &s)
		}
	}
	for _, s := range segments(packets, 82) {
		if s.HasENO() {
			t.Errorf("ENO to a peer that sent none: %v", &s)
		}
	}
	if !bytes.Contains(bytes.Join(packets, nil), []byte("plain"+"text")) {
		t.Error("the marker is not seen in clear: the test that looks for it would find nothing")
	}
}
