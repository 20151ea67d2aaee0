package e2e

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// An attacker in the path between two daemons. TCP itself is not protected, so every
// change keeps sequence numbers and checksums right.

// An attack watches one direction of one connection, the service's, whose stream it
// counts; change may replace a segment with data at that offset.
type attack struct {
	mu     sync.Mutex
	base   uint32 // sequence number of the stream's first byte
	done   bool
	change func(a *attack, s *wirepeer.Segment, offset int)
	stored []byte
}

// attackAfter is where in the stream the attacks begin: behind the key exchange, with
// some good data before.
const attackAfter = 40_000

func (a *attack) hook(port uint16) func(s *wirepeer.Segment) []*wirepeer.Segment {
	return func(s *wirepeer.Segment) []*wirepeer.Segment {
		a.mu.Lock()
		defer a.mu.Unlock()
		if s.Src.Port() != port {
			return []*wirepeer.Segment{s}
		}
		if s.Flags.Has(wirepeer.SYN) {
			a.base = s.Seq + 1
		} else if len(s.Payload) > 0 {
			a.change(a, s, int(s.Seq-a.base))
		}
		return []*wirepeer.Segment{s}
	}
}

func TestTamperingOnTheWireEndsInAReset(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change func(a *attack, s *wirepeer.Segment, offset int)
	}{
		{"flipped byte", func(a *attack, s *wirepeer.Segment, offset int) {
			// The same byte of the stream in every copy of it.
			if i := attackAfter - offset; i >= 0 && i < len(s.Payload) {
				s.Payload[i] ^= 0x01
				a.done = true
			}
		}},
		{"replayed record", func(a *attack, s *wirepeer.Segment, offset int) {
			// Bytes from the stream's beginning stand once more behind the attack's point.
			if offset < attackAfter && a.stored == nil && len(s.Payload) > 1000 {
				a.stored = slices.Clone(s.Payload)
			}
			if i := attackAfter - offset; i < len(s.Payload) && a.stored != nil {
				i = max(i, 0)
				copy(s.Payload[i:], a.stored)
				a.done = true
			}
		}},
		{"truncated stream", func(a *attack, s *wirepeer.Segment, offset int) {
			if end := attackAfter - offset; end < len(s.Payload) {
				s.Payload = s.Payload[:max(end, 0)]
				s.Seq -= uint32(max(-end, 0))
				s.Flags |= wirepeer.FIN
				a.done = true
			}
		}},
		{"forged FIN before the first record", func(a *attack, s *wirepeer.Segment, offset int) {
			if end := 200 - offset; end < len(s.Payload) {
				s.Payload = s.Payload[:max(end, 0)]
				s.Seq -= uint32(max(-end, 0))
				s.Flags |= wirepeer.FIN
				a.done = true
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t, networkOptions{})
			n.daemons(t)
			service := n.b.listen(t, 80)
			a := &attack{change: c.change}
			n.intercept(t, a.hook(80))
			client := n.a.mustDial(t, netip.AddrPortFrom(n.b.Addr4(), 80))
			server := accept(t, service)
			data := streamBytes(2_000_000)
			go func() { _, _ = server.Write(data) }() // it fails when the connection does
			mustReset(t, "client", client, data)
			// The other end learns of it by RST as well.
			if _, err := io.ReadAll(server); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("service: %v, want a reset", err)
			}
			a.mu.Lock()
			defer a.mu.Unlock()
			if !a.done {
				t.Error("nothing was changed")
			}
		})
	}
}

// stripENO overwrites ENO options with NOPs.
func stripENO(s *wirepeer.Segment) {
	for _, o := range wirepeer.ENOOptions(s.Options) {
		if at := bytes.Index(s.Options, o); at >= 0 {
			copy(s.Options[at:], bytes.Repeat([]byte{1}, len(o)))
		}
	}
}

// Middleboxes remove options: opportunistic connections go on in clear, and say why.
func TestStrippedOptionMeansInClear(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		strip   func(s *wirepeer.Segment) bool
		reasonA string
		reasonB string
	}{
		{"from the SYN", func(s *wirepeer.Segment) bool { return s.Flags&(wirepeer.SYN|wirepeer.ACK) == wirepeer.SYN }, "no-eno", "no-eno"},
		{"from the SYN-ACK", func(s *wirepeer.Segment) bool { return s.Flags.Has(wirepeer.SYN | wirepeer.ACK) }, "no-eno", "stripped"},
		{"from everything", func(*wirepeer.Segment) bool { return true }, "no-eno", "no-eno"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t, networkOptions{})
			a, b := n.daemons(t)
			n.b.serveTransfers(t, 80)
			n.intercept(t, func(s *wirepeer.Segment) []*wirepeer.Segment {
				if c.strip(s) {
					stripENO(s)
				}
				return []*wirepeer.Segment{s}
			})
			if _, err := n.a.transfer(soon(t), netip.AddrPortFrom(n.b.Addr4(), 80), 100_000, 100_000); err != nil {
				t.Fatal(err)
			}
			any := func(conn) bool { return true }
			if got := a.conn(t, "the connection", any); got.Encrypted || !is(got.Reason, c.reasonA) {
				t.Errorf("opener: %v, want in clear because of %s", got, c.reasonA)
			}
			if got := b.conn(t, "the connection", any); got.Encrypted || !is(got.Reason, c.reasonB) {
				t.Errorf("listener: %v, want in clear because of %s", got, c.reasonB)
			}
		})
	}
}

// Changing the options in flight makes the transcripts differ: no connection results.
func TestChangedOffersEndInAReset(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	n.daemons(t)
	service := n.b.listen(t, 80)
	n.intercept(t, func(s *wirepeer.Segment) []*wirepeer.Segment {
		if eno := s.ENO(); s.Flags&(wirepeer.SYN|wirepeer.ACK) == wirepeer.SYN && eno != nil {
			// Keep P-256 alone of what was offered, the rest becomes an unknown TEP.
			at := bytes.Index(s.Options, eno)
			for i := at + 2; i < at+len(eno); i++ {
				if s.Options[i] != 0x21 && s.Options[i] >= 0x20 {
					s.Options[i] = byte(0x30 + i)
				}
			}
		}
		return []*wirepeer.Segment{s}
	})
	client := n.a.mustDial(t, netip.AddrPortFrom(n.b.Addr4(), 80))
	server := accept(t, service)
	go func() { _, _ = server.Write([]byte("hello")) }()
	mustWrite(t, "client", client, "hello")
	mustReset(t, "client", client, nil)
	mustReset(t, "service", server, nil)
}

// Loss, reordering and duplication between two daemons cost time and nothing else.
func TestTransfersSurviveABadNetwork(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	a, _ := n.daemons(t)
	server := n.b.serveTransfers(t, 80)
	count := 0
	var held *wirepeer.Segment
	n.intercept(t, func(s *wirepeer.Segment) []*wirepeer.Segment {
		count++
		late := held
		held = nil
		out := []*wirepeer.Segment{s}
		switch {
		case count%211 == 0:
			out = nil
		case count%97 == 0:
			out = []*wirepeer.Segment{s, s}
		case count%31 == 0 && late == nil && len(s.Payload) > 0:
			held, out = s, nil
		}
		if late != nil {
			out = append(out, late)
		}
		return out
	})
	for _, f := range families {
		if _, err := n.a.transfer(soon(t), netip.AddrPortFrom(n.b.addr(f.v6), 80), 2_000_000, 2_000_000); err != nil {
			t.Errorf("%s: %v", f.name, err)
		}
	}
	if err := server.failures(); err != nil {
		t.Error(err)
	}
	for _, c := range a.conns(t) {
		if !c.Encrypted {
			t.Errorf("not encrypted: %v", c)
		}
	}
}
