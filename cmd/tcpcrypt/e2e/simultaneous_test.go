package e2e

import (
	"encoding/hex"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// TestCrossingSYNsAgreeOnRoles: the peer answers the daemon's SYN with one of its own, as
// if both had opened at once, and it comes through the kernel's NAT. Whoever set the
// role bit is B.
func TestCrossingSYNsAgreeOnRoles(t *testing.T) {
	t.Parallel()
	o := newOutbound(t, everything(opportunistic, everyAlgorithm))
	t.Run("peer is B", func(t *testing.T) {
		eno := func(*wirepeer.Segment) []byte { return wirepeer.BuildENO(0x01, 0x21, 0x24, 0x23) }
		script := wirepeer.Script{Answer: eno, Simultaneous: true}
		app, s := o.encrypted(t, script, wirepeer.Config{})
		mustWrite(t, "program", app, "hello")
		if got, err := s.ReadData(soon(t), len("hello")); err != nil || string(got) != "hello" {
			t.Errorf("peer: %q, %v", got, err)
		}
		s.SendData([]byte("welcome"), len("welcome"))
		mustRead(t, "program", app, "welcome")
		c := o.daemon.conn(t, "the session", func(c conn) bool { return is(c.SessionID, hex.EncodeToString(s.ID[:])) })
		if !c.Encrypted || !is(c.Role, "A") || !is(c.TEP, "curve25519") {
			t.Errorf("%v", c)
		}
		var own [][]byte // of the daemon's SYN and SYN-ACK
		for _, seg := range s.Conn.Trace() {
			if !seg.Out && seg.Flags.Has(wirepeer.SYN) {
				own = append(own, seg.ENO())
			}
		}
		if len(own) < 2 || string(own[0]) != string(own[len(own)-1]) {
			t.Errorf("the daemon's SYN and SYN-ACK have %x, want the same twice", own)
		}
	})
	t.Run("both are A", func(t *testing.T) {
		app, peer := o.connect(t, wirepeer.Script{ENO: wirepeer.BuildENO(0x23), Simultaneous: true})
		mustWrite(t, "program", app, "hello")
		if got, err := peer.Read(soon(t), len("hello")); err != nil || string(got) != "hello" {
			t.Errorf("peer: %q, %v; want it in clear", got, err)
		}
		o.daemon.conn(t, "why it is in clear", func(c conn) bool { return !c.Encrypted && is(c.Reason, "same-role") })
	})
}
