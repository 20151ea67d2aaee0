package e2e

import (
	"bytes"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// Where the ENO option stands: RFC 8547, section 4.6.

func TestOpenerMarksEverySegmentUntilThePeersFirst(t *testing.T) {
	t.Parallel()
	o := newOutbound(t, everything(opportunistic, ""))
	// The SYN is lost once, the ACK and Init1 are repeated because nothing acknowledges
	// them until three copies have come.
	var syns, inits int
	_, s := o.encrypted(t, wirepeer.Script{In: func(seg *wirepeer.Segment) bool {
		switch {
		case seg.Flags.Has(wirepeer.SYN):
			syns++
			return syns > 1
		case len(seg.Payload) > 0 && inits < 3:
			inits++
			return inits == 3
		}
		return true
	}}, wirepeer.Config{})
	s.Send(wirepeer.Frame{Data: []byte("x")})
	// A's acknowledgement of our frame proves that it has heard us.
	if err := s.Conn.Drained(soon(t)); err != nil {
		t.Fatal(err)
	}
	var first []byte
	for _, seg := range s.Conn.Trace() {
		if seg.Out {
			continue
		}
		if seg.Flags.Has(wirepeer.SYN) {
			if len(seg.Payload) > 0 {
				t.Errorf("data in the SYN: %v", &seg.Segment)
			}
			continue
		}
		if heard := seg.Ack != s.Conn.Trace()[1].Seq+1; heard == seg.HasENO() {
			t.Errorf("has ENO: %t; acknowledges our data: %t: %v", seg.HasENO(), heard, &seg.Segment)
		}
		if len(seg.Payload) > 0 && first == nil {
			first = seg.Payload
			if !seg.Flags.Has(wirepeer.PSH) {
				t.Errorf("no PSH on the segment with the end of Init1: %v", &seg.Segment)
			}
		}
	}
	if first == nil {
		t.Error("no Init1 in the trace")
	}
}

// A bare ACK of more than the SYN is a segment heard, too.
func TestOpenerStopsMarkingAtABareACKOfItsData(t *testing.T) {
	t.Parallel()
	o := newOutbound(t, everything(opportunistic, everyAlgorithm))
	var second uint32 // sequence number of Init1's second segment, lost once
	cfg := wirepeer.Config{TEPs: []wirepeer.TEP{wirepeer.P521}}
	_, s := o.encrypted(t, wirepeer.Script{MSS: 100, In: func(seg *wirepeer.Segment) bool {
		if len(seg.Payload) > 0 && second == 0 && !bytes.HasPrefix(seg.Payload, []byte{0x15, 0x10}) {
			second = seg.Seq
			return false
		}
		return true
	}}, cfg)
	again := firstOf(s.Conn, func(seg *wirepeer.Traced) bool { return !seg.Out && len(seg.Payload) > 0 && seg.Seq == second })
	if second == 0 || len(again.Payload) == 0 {
		t.Fatalf("Init1 did not come in two segments: %v", &again.Segment)
	}
	if again.HasENO() {
		t.Errorf("ENO after a bare ACK of the first segment: %v", &again.Segment)
	}
}

func TestSYNOfTheOpenerIsRepeatedUnchanged(t *testing.T) {
	t.Parallel()
	o := newOutbound(t, everything(require, everyAlgorithm))
	var options [][]byte
	at, l := o.server(t, false, func() wirepeer.Script {
		return wirepeer.Script{Answer: wirepeer.Config{}.Answer, In: func(seg *wirepeer.Segment) bool {
			if seg.Flags.Has(wirepeer.SYN) {
				options = append(options, seg.ENO())
			}
			return len(options) >= 4
		}}
	})
	exchanged := l.handshake(wirepeer.Config{})
	o.a.mustDial(t, at) // under require it never falls back
	exchanged(t)
	for _, eno := range options {
		if eno == nil || !bytes.Equal(eno, options[0]) {
			t.Errorf("SYNs with ENO %x: want the same in each", options)
			break
		}
	}
}

// Under opportunistic, two SYNs carry ENO and the third does not.
func TestFallsBackAfterTwoUnansweredSYNs(t *testing.T) {
	t.Parallel()
	o := newOutbound(t, everything(opportunistic, ""))
	var enos []bool
	app, peer := o.connect(t, wirepeer.Script{
		Answer: wirepeer.Config{}.Answer, // it would, if it heard one with ENO
		In: func(seg *wirepeer.Segment) bool {
			if seg.Flags.Has(wirepeer.SYN) {
				enos = append(enos, seg.HasENO())
				return !seg.HasENO()
			}
			return true
		},
	})
	if len(enos) < 3 || !enos[0] || !enos[1] || enos[2] {
		t.Errorf("SYNs with ENO: %v, want true, true, false", enos)
	}
	mustWrite(t, "program", app, "in clear")
	if got, err := peer.Read(soon(t), 8); string(got) != "in clear" {
		t.Errorf("peer read %q, %v", got, err)
	}
	if got := o.daemon.conn(t, "the connection", to(peer.Local())); got.Encrypted || !is(got.Reason, "fallback") {
		t.Errorf("tcpcrypt conns says %v, want in clear because of fallback", got)
	}
}

func TestListenerRepeatsItsSYNACKUnchanged(t *testing.T) {
	t.Parallel()
	in := newInbound(t, everything(opportunistic, everyAlgorithm))
	var synacks []wirepeer.Segment
	edited := 0
	peer := in.dial(t, false, wirepeer.Script{
		ENO: wirepeer.BuildENO(0x21, 0x23),
		In: func(seg *wirepeer.Segment) bool {
			if seg.Flags.Has(wirepeer.SYN) {
				synacks = append(synacks, *seg)
				return len(synacks) > 2 // so our SYN is repeated, too
			}
			return true
		},
		Out: func(seg *wirepeer.Segment) []*wirepeer.Segment {
			// A repeated SYN with other ENO bytes changes nothing: 0x24 is not taken.
			if seg.Flags.Has(wirepeer.SYN) {
				if edited++; edited > 1 {
					seg.Options = bytes.Replace(seg.Options, []byte{69, 4, 0x21, 0x23}, []byte{69, 4, 0x24, 0x21}, 1)
				}
			}
			return []*wirepeer.Segment{seg}
		},
	})
	s, err := wirepeer.Handshake(soon(t), peer, wirepeer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if edited < 2 {
		t.Fatalf("%d SYNs sent, want a repeated one", edited)
	}
	for _, sa := range synacks {
		if !bytes.Equal(sa.ENO(), synacks[0].ENO()) || sa.Seq != synacks[0].Seq {
			t.Errorf("SYN-ACKs differ: %v and %v", &synacks[0], &sa)
		}
	}
	s.Send(wirepeer.Frame{Data: []byte("x")})
	if err := peer.Drained(soon(t)); err != nil {
		t.Fatal(err)
	}
	mustRead(t, "service", accept(t, in.service), "x")
	established := false
	for _, seg := range peer.Trace() {
		switch {
		case seg.Out && !seg.Flags.Has(wirepeer.SYN):
			established = true
		case !seg.Out && seg.Flags.Has(wirepeer.SYN):
		case !seg.Out && established && seg.HasENO():
			t.Errorf("ENO after the ACK was received: %v", &seg.Segment)
		case !seg.Out && !established && !seg.HasENO() && !seg.Flags.Has(wirepeer.RST):
			t.Errorf("no ENO in SYN-RCVD: %v", &seg.Segment)
		}
	}
}

// The opener's ACK may be lost: a bare ACK that answers a repeated SYN-ACK or SYN must
// not end the opener's marking, or one side encrypts and the other does not.
func TestLostACKDoesNotSplitTheEnds(t *testing.T) {
	t.Parallel()
	o := newOutbound(t, everything(opportunistic, ""))
	lost := 0
	script := wirepeer.Script{
		In: func(seg *wirepeer.Segment) bool { // the first two segments with ACK get lost
			if !seg.Flags.Has(wirepeer.SYN) && lost < 2 {
				lost++
				return false
			}
			return true
		},
		Answer: wirepeer.Config{}.Answer,
	}
	at, l := o.server(t, false, func() wirepeer.Script { return script })
	app := o.a.mustDial(t, at)
	peer, err := l.Accept(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	s, err := wirepeer.Handshake(soon(t), peer, wirepeer.Config{})
	if err != nil {
		t.Fatalf("%v\n%v", err, firstOf(peer, func(s *wirepeer.Traced) bool { return !s.Out && !s.Flags.Has(wirepeer.SYN) }))
	}
	mustWrite(t, "program", app, "hello")
	if got, err := s.ReadData(soon(t), 5); string(got) != "hello" {
		t.Errorf("peer read %q, %v", got, err)
	}

	t.Run("bare ACK in SYN-RCVD", func(t *testing.T) {
		// The peer answers with the SYN-ACK and a bare ACK with ENO right behind it.
		script := wirepeer.Script{Answer: wirepeer.Config{}.Answer, Out: func(seg *wirepeer.Segment) []*wirepeer.Segment {
			if !seg.Flags.Has(wirepeer.SYN) {
				return []*wirepeer.Segment{seg}
			}
			bare := *seg
			bare.Seq, bare.Flags, bare.Options = seg.Seq+1, wirepeer.ACK, append([]byte{1, 1}, wirepeer.NonSYN...)
			return []*wirepeer.Segment{seg, &bare}
		}}
		inits := 0
		script.In = func(seg *wirepeer.Segment) bool { // Init1 is repeated, with ENO
			if len(seg.Payload) > 0 {
				inits++
			}
			return len(seg.Payload) == 0 || inits > 1
		}
		app, s := o.encrypted(t, script, wirepeer.Config{})
		for _, seg := range s.Conn.Trace() {
			if !seg.Out && !seg.Flags.Has(wirepeer.SYN) && seg.Ack == s.Conn.Trace()[1].Seq+1 && !seg.HasENO() {
				t.Errorf("no ENO before anything but our SYN was acknowledged: %v", &seg.Segment)
			}
		}
		mustWrite(t, "program", app, "hello")
		if got, err := s.ReadData(soon(t), 5); string(got) != "hello" {
			t.Errorf("peer read %q, %v", got, err)
		}
	})
}

// ENO and its padding take four bytes: a full-sized first segment must still fit.
func TestSegmentsWithENOFitTheMSS(t *testing.T) {
	t.Parallel()
	in := newInbound(t, everything(opportunistic, everyAlgorithm))
	o := newOutbound(t, everything(opportunistic, everyAlgorithm))
	const mss = 100 // so that Init needs more than one segment
	full := func(c *wirepeer.Conn, stamps bool) {
		t.Helper()
		longest := 0
		for _, seg := range c.Trace() {
			if seg.Out {
				continue
			}
			longest = max(longest, len(seg.Payload)+len(seg.Options))
			if len(seg.Payload)+len(seg.Options) > mss {
				t.Errorf("%d bytes of payload and %d of options, MSS is %d: %v", len(seg.Payload), len(seg.Options), mss, &seg.Segment)
			}
		}
		if longest < mss-3 && !stamps { // with these and SACK, room is kept for blocks
			t.Errorf("the longest segment has %d bytes with options, MSS is %d: not full", longest, mss)
		}
	}
	for _, stamps := range []bool{false, true} {
		script := wirepeer.Script{MSS: mss, Timestamps: stamps, SACKPermitted: stamps}
		app, s := o.encrypted(t, script, wirepeer.Config{TEPs: []wirepeer.TEP{wirepeer.P521}})
		mustWrite(t, "program", app, string(streamBytes(5000)))
		if _, err := s.ReadData(soon(t), 5000); err != nil {
			t.Fatal(err)
		}
		full(s.Conn, stamps)

		service, s := in.encrypted(t, script, wirepeer.Config{TEPs: []wirepeer.TEP{wirepeer.P521}})
		mustWrite(t, "service", service, string(streamBytes(5000)))
		if _, err := s.ReadData(soon(t), 5000); err != nil {
			t.Fatal(err)
		}
		full(s.Conn, stamps)
	}
}
