package conformance

import (
	"bytes"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack"
	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// TestRFC8547_4_6_EverySegmentUntilThePeersFirst: the opener marks all that it sends
// until it hears more than the SYN-ACK, retransmissions too, and nothing afterwards.
func TestRFC8547_4_6_EverySegmentUntilThePeersFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var silent atomic.Bool
	silent.Store(true)
	peer, wait := r.dial(opts{}, script{Answer: config{}.Answer, Out: func(s *wirepeer.Segment) []*wirepeer.Segment {
		if silent.Load() && !isSYN(s) {
			return nil
		}
		return []*wirepeer.Segment{s}
	}})
	var init1 int
	if _, err := peer.Seen(r.ctx, "Init1 again", func(s *wirepeer.Traced) bool {
		if !s.Out && len(s.Payload) > 0 {
			init1++
		}
		return init1 == 2
	}); err != nil {
		t.Fatal(err)
	}
	for _, s := range received(peer) {
		if !s.HasENO() {
			t.Errorf("no ENO: %v", &s)
		}
		if !isSYN(&s) && !bytes.Contains(s.Options, wirepeer.NonSYN) {
			t.Errorf("not the empty form: %v", &s)
		}
	}
	silent.Store(false)
	s, err := wirepeer.Handshake(r.ctx, peer, config{})
	if err != nil {
		t.Fatal(err)
	}
	app, err := wait()
	if err != nil {
		t.Fatal(err)
	}
	before := len(received(peer))
	e := &end{t: t, ctx: r.ctx, app: app, peer: peer, s: s}
	e.talk()
	for _, s := range e.ours()[before:] {
		if s.HasENO() {
			t.Errorf("ENO after the peer's first segment: %v", &s)
		}
	}
}

func TestRFC8547_4_6_PassiveMarksNothingButItsSYNACK(t *testing.T) {
	t.Parallel()
	e := newRig(t).open(false, opts{}, script{}, config{})
	e.talk()
	for _, s := range e.ours() {
		if s.HasENO() != isSYN(&s) {
			t.Errorf("ENO = %t: %v", s.HasENO(), &s)
		}
	}
}

func TestRFC8547_4_6_SYNACKWithoutENODisables(t *testing.T) {
	t.Parallel()
	newRig(t).plain(true, opts{}, script{Mark: wirepeer.MarkExcept(0)}, tcpcrypt.ReasonNoENO)
}

func TestRFC8547_4_6_SYNWithoutENODisables(t *testing.T) {
	t.Parallel()
	e := newRig(t).plain(false, opts{}, script{Mark: wirepeer.MarkExcept(0)}, tcpcrypt.ReasonNoENO)
	if e.ours()[0].HasENO() {
		t.Error("answered")
	}
}

// TestRFC8547_4_6_FirstACKWithoutENODisables: whatever comes later.
func TestRFC8547_4_6_FirstACKWithoutENODisables(t *testing.T) {
	t.Parallel()
	newRig(t).plain(false, opts{}, script{ENO: wirepeer.BuildENO(0x23), Mark: wirepeer.MarkExcept(1)}, tcpcrypt.ReasonStripped)
}

func TestRFC8547_4_6_EncryptionIsNeverUndone(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, opts{}, script{}, config{})
		e.peer.Write(bytes.Repeat([]byte("in clear "), 8000))
		e.aborted(tcpcrypt.ErrAuth)
	})
}

// TestRFC8547_4_6_SegmentsFitBesideTheOption: the option takes its room from the payload.
func TestRFC8547_4_6_SegmentsFitBesideTheOption(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		const mss = 70
		e := newRig(t).open(active, opts{}, script{MSS: mss}, config{})
		e.write(string(bytes.Repeat([]byte("x"), 300)))
		if _, err := e.s.ReadData(e.ctx, 300); err != nil {
			t.Fatal(err)
		}
		var full int
		for _, s := range e.ours()[1:] {
			if len(s.Payload)+len(s.Options) > mss {
				t.Errorf("longer than the MSS: %v", &s)
			}
			if !s.HasENO() && len(s.Payload)+len(s.Options) == mss {
				full++
			}
		}
		if !active && full == 0 { // the opener's stay four bytes short, which is harmless
			t.Error("no segment is full, though none is marked")
		}
	})
}

func TestRFC8547_4_6_SYNIsRepeatedAsItWas(t *testing.T) {
	t.Parallel()
	var syns [][]byte
	e := newRig(t).open(true, opts{}, script{Answer: config{}.Answer, In: func(s *wirepeer.Segment) bool {
		if isSYN(s) {
			syns = append(syns, s.ENO())
		}
		return len(syns) > 1
	}}, config{})
	e.talk()
	if len(syns) != 2 || !bytes.Equal(syns[0], syns[1]) {
		t.Errorf("%x", syns)
	}
}

func TestRFC8547_4_6_SYNACKIsRepeatedAsItWas(t *testing.T) {
	t.Parallel()
	var lost bool
	r := newRig(t)
	l, at := r.listen(opts{})
	peer, err := r.host.Dial(r.ctx, peerAddr, at, script{ENO: wirepeer.BuildENO(0x23), Out: func(s *wirepeer.Segment) []*wirepeer.Segment {
		if !isSYN(s) && !lost {
			lost = true
			return nil
		}
		return []*wirepeer.Segment{s}
	}})
	if err != nil {
		t.Fatal(err)
	}
	app, err := l.AcceptConn() // once the SYN-ACK has come again
	if err != nil {
		t.Fatal(err)
	}
	s, err := wirepeer.Handshake(r.ctx, peer, config{})
	if err != nil {
		t.Fatal(err)
	}
	e := &end{t: t, ctx: r.ctx, app: app, peer: peer, s: s}
	e.talk()
	if all := e.ours(); !isSYN(&all[1]) || !bytes.Equal(all[0].ENO(), all[1].ENO()) {
		t.Errorf("%v, then %v", &all[0], &all[1])
	}
}

// TestRFC8547_4_6_OptionIsDroppedForGood: the third SYN goes without, and then ENO in the
// answer changes nothing.
func TestRFC8547_4_6_OptionIsDroppedForGood(t *testing.T) {
	t.Parallel()
	var syns [][]byte
	newRig(t).plain(true, opts{}, script{ENO: wirepeer.BuildENO(1, 0x23), In: func(s *wirepeer.Segment) bool {
		if isSYN(s) {
			syns = append(syns, s.ENO())
		}
		return len(syns) > 2
	}}, tcpcrypt.ReasonFallback)
	if len(syns) != 3 || syns[0] == nil || !bytes.Equal(syns[0], syns[1]) || syns[2] != nil {
		t.Errorf("%x", syns)
	}
}

// TestRFC8547_4_6_OtherSYNChangesNothing, but the ACK that answers it in SYN-RCVD is marked.
func TestRFC8547_4_6_OtherSYNChangesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l, at := r.listen(opts{})
	var open atomic.Bool
	peer, err := r.host.Dial(r.ctx, peerAddr, at, script{ENO: wirepeer.BuildENO(0x23), Out: func(s *wirepeer.Segment) []*wirepeer.Segment {
		if !isSYN(s) && !open.Load() {
			return nil
		}
		return []*wirepeer.Segment{s}
	}})
	if err != nil {
		t.Fatal(err)
	}
	peer.ResendSYN(wirepeer.BuildENO(0x21))
	ack, err := peer.Seen(r.ctx, "an ACK", func(s *wirepeer.Traced) bool { return !s.Out && !isSYN(&s.Segment) })
	if err != nil {
		t.Fatal(err)
	}
	if !ack.HasENO() {
		t.Errorf("not marked: %v", &ack.Segment)
	}
	open.Store(true)
	peer.Inject(func(s *wirepeer.Segment) { s.Options = append([]byte{1, 1}, wirepeer.NonSYN...) })
	app, err := l.AcceptConn()
	if err != nil {
		t.Fatal(err)
	}
	s, err := wirepeer.Handshake(r.ctx, peer, config{})
	if err != nil {
		t.Fatal(err)
	}
	(&end{t: t, ctx: r.ctx, app: app, peer: peer, s: s}).talk()
}

func TestRFC8547_4_6_SimultaneousOpen(t *testing.T) {
	t.Parallel()
	for _, b := range []bool{false, true} {
		r := newRig(t)
		o := crypto(tcpcrypt.Options{PassiveRole: b})
		o.Local = netip.AddrPortFrom(ourAddr.Addr(), 4000)
		e := r.open(true, o, script{ENO: option(!b, 0x23), Simultaneous: true}, config{})
		e.talk()
		var options [][]byte
		for _, s := range e.ours() {
			if isSYN(&s) {
				options = append(options, s.ENO())
			}
		}
		if len(options) < 2 || !bytes.Equal(options[0], options[1]) {
			t.Errorf("SYN and SYN-ACK have %x", options)
		}
		if got := e.security().Role == tcpcrypt.RoleB; got != b {
			t.Errorf("PassiveRole %t: role B %t", b, got)
		}
	}
}

// TestRFC8547_4_6_SimultaneousOpenOfEqualRoles: the SYN-ACK says already that it fails.
func TestRFC8547_4_6_SimultaneousOpenOfEqualRoles(t *testing.T) {
	t.Parallel()
	o := opts{Local: netip.AddrPortFrom(ourAddr.Addr(), 4000)}
	e := newRig(t).plain(true, o, script{ENO: wirepeer.BuildENO(0x23), Simultaneous: true}, tcpcrypt.ReasonSameRole)
	for _, s := range e.ours()[1:] {
		if s.HasENO() {
			t.Errorf("ENO: %v", &s)
		}
	}
}

func TestRFC8547_4_7_DataInSYNIsNotAcknowledged(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		for name, c := range map[string]struct {
			policy stack.Policy
			eno    []byte
		}{
			"encrypted":   {stack.Opportunistic, option(active, 0x23)},
			"ENO fails":   {stack.Opportunistic, option(active, 0x6f)},
			"ENO is off":  {stack.Bypass, option(active, 0x23)},
			"looks right": {stack.Opportunistic, option(active, 0x23, 0x20)},
		} {
			t.Run(name, func(t *testing.T) {
				r, o := newRig(t), opts{Policy: c.policy}
				sc := script{ENO: c.eno, SYNData: []byte("never to be seen")}
				var e *end
				if name == "encrypted" || name == "looks right" {
					e = r.open(active, o, sc, config{})
					e.talk()
				} else {
					e = r.plain(active, o, sc, "")
				}
				for _, s := range e.ours() {
					if s.Flags.Has(wirepeer.ACK) {
						if s.Ack != sent(e.peer).Seq+1 {
							t.Errorf("acknowledges data: %v", &s)
						}
						break
					}
				}
			})
		}
	})
}

func TestRFC8547_4_7_OurSYNHasNoData(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		fastOpen := []byte{wirepeer.OptionFastOpen, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1}
		e := newRig(t).open(active, opts{}, script{Options: fastOpen}, config{})
		e.talk()
		if s := e.ours()[0]; len(s.Payload) != 0 || bytes.Contains(s.Options, []byte{wirepeer.OptionFastOpen, 2}) || bytes.Contains(s.Options, fastOpen[:2]) {
			t.Errorf("%v", &s)
		}
	})
}
