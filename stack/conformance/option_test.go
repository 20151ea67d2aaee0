package conformance

import (
	"bytes"
	"slices"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack"
	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
	"github.com/tcpcrypt/tcpcrypt/stack/socket"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

type (
	opts   = socket.ConnOptions
	script = wirepeer.Script
	config = wirepeer.Config
)

func crypto(o tcpcrypt.Options) opts { return opts{Crypto: o} }

func TestRFC8547_4_1_ExactOptions(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		want := []byte{69, 4, 0x21, 0x23}
		if !active {
			want = []byte{69, 4, 0x01, 0x23} // one TEP, and always b = 1
		}
		e := newRig(t).open(active, opts{}, script{}, config{})
		if got := e.ours()[0].ENO(); !bytes.Equal(got, want) {
			t.Errorf("option %x, want %x", got, want)
		}
		e.talk()
	})
}

func TestRFC8547_4_1_TwoOptionsInASYNAreNone(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		twice := slices.Concat(option(active, 0x23), option(active, 0x23))
		e := newRig(t).plain(active, opts{}, script{ENO: twice}, tcpcrypt.ReasonNoENO)
		if !active && e.ours()[0].HasENO() {
			t.Error("answered")
		}
	})
}

// TestRFC8547_4_1_MarkOfAnyContents: of a non-SYN segment only presence counts.
func TestRFC8547_4_1_MarkOfAnyContents(t *testing.T) {
	t.Parallel()
	for _, mark := range [][]byte{{69, 5, 1, 2, 3}, {69, 2, 69, 2}, {69, 3, 0x23, 69, 2}} {
		e := newRig(t).open(false, opts{}, script{Out: func(s *wirepeer.Segment) []*wirepeer.Segment {
			p := *s
			if !isSYN(s) && s.HasENO() {
				p.Options = bytes.Replace(s.Options, wirepeer.NonSYN, mark, 1)
			}
			return []*wirepeer.Segment{&p}
		}}, config{})
		e.talk()
	}
}

func TestRFC8547_4_2_IllFormedIsNone(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		for name, subs := range map[string][]byte{
			"length byte at the end":             {0x23, 0x80},
			"length byte before a length byte":   {0x23, 0x81, 0x80, 0xa4, 1, 2},
			"length byte before a global":        {0x23, 0x80, 0x02},
			"length byte before v = 0":           {0x80, 0x23, 0x23},
			"length byte promising one too many": {0x23, 0x83, 0xa4, 1, 2, 3},
		} {
			t.Run(name, func(t *testing.T) {
				e := newRig(t).plain(active, opts{}, script{ENO: option(active, subs...)}, tcpcrypt.ReasonNoENO)
				if !active && e.ours()[0].HasENO() {
					t.Error("answered")
				}
			})
		}
	})
}

func TestRFC8547_4_2_UnknownSuboptionsAreSkipped(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		for _, subs := range [][]byte{
			{0x82, 0xe7, 0x22, 0x24, 0x21, 0x23}, // data that looks like TEPs
			{0x23, 0x6f}, {0x23, 0x70, 0xff, 1, 2, 3}, {0x25, 0x23, 0x20},
		} {
			e := newRig(t).open(active, opts{}, script{ENO: option(active, subs...)}, config{})
			if tep := e.security().TEP; tep != tcpcrypt.TEP(0x23) {
				t.Errorf("%x: TEP %v", subs, tep)
			}
			e.talk()
		}
	})
}

func TestRFC8547_4_2_ReservedBitsAndSecondGlobalAreIgnored(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		g, other := byte(0x1c), byte(0x01)
		if active {
			g, other = 0x1d, 0x00
		}
		newRig(t).open(active, opts{}, script{ENO: wirepeer.BuildENO(g, other, 0x23)}, config{}).talk()
	})
}

func TestRFC8547_4_3_EqualRolesAreInClear(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).plain(active, opts{}, script{ENO: option(!active, 0x23)}, tcpcrypt.ReasonSameRole)
		if !active && e.ours()[0].HasENO() {
			t.Error("answered")
		}
	})
}

func TestRFC8547_4_3_Roles(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		e := newRig(t).open(active, opts{}, script{}, config{})
		want := tcpcrypt.RoleB
		if active {
			want = tcpcrypt.RoleA
		}
		if got := e.security().Role; got != want {
			t.Errorf("role %v, want %v", got, want)
		}
	})
}

func TestRFC8547_4_3_PassiveRoleOnRequest(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.plain(true, crypto(tcpcrypt.Options{PassiveRole: true}), script{ENO: option(true, 0x23)}, tcpcrypt.ReasonSameRole)
	if got := e.ours()[0].ENO(); !bytes.Equal(got, []byte{69, 5, 1, 0x21, 0x23}) {
		t.Errorf("option %x", got)
	}
}

func TestRFC8547_4_3_ApplicationAwareBit(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		aware := crypto(tcpcrypt.Options{ApplicationAware: true})
		want, peers := []byte{69, 5, 2, 0x21, 0x23}, wirepeer.BuildENO(3, 0x23)
		if !active {
			want, peers = []byte{69, 4, 3, 0x23}, wirepeer.BuildENO(2, 0x23)
		}
		e := newRig(t).open(active, aware, script{}, config{})
		if got := e.ours()[0].ENO(); !bytes.Equal(got, want) {
			t.Errorf("option %x, want %x", got, want)
		}
		if e.security().PeerApplicationAware {
			t.Error("the peer is not application-aware")
		}
		e = newRig(t).open(active, opts{}, script{ENO: peers}, config{})
		if !e.security().PeerApplicationAware {
			t.Error("the peer is application-aware")
		}
	})
}

func TestRFC8547_4_3_MandatoryApplicationAware(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		must := crypto(tcpcrypt.Options{ApplicationAware: true, RequireApplicationAware: true})
		e := newRig(t).plain(active, must, script{ENO: option(active, 0x23)}, tcpcrypt.ReasonPolicy)
		if !active && e.ours()[0].HasENO() {
			t.Error("answered")
		}
		g := byte(2)
		if active {
			g = 3
		}
		newRig(t).open(active, must, script{ENO: wirepeer.BuildENO(g, 0x23)}, config{}).talk()
	})
}

func TestRFC8547_4_5_LastValidOfBCounts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		answer []byte
		want   tcpcrypt.TEP
	}{{[]byte{1, 0x23, 0x21}, 0x21}, {[]byte{1, 0x21, 0x23, 0x24}, 0x23}, {[]byte{1, 0x21, 0x23, 0x23}, 0x21}} {
		e := newRig(t).open(true, opts{}, script{ENO: wirepeer.BuildENO(c.answer...)}, config{})
		if got := e.security().TEP; got != c.want {
			t.Errorf("%x: TEP %v, want %v", c.answer, got, c.want)
		}
		e.talk()
	}
}

func TestRFC8547_4_5_AnswersOneValidTEP(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ offer, want []byte }{
		{[]byte{0x23, 0x21}, []byte{69, 4, 1, 0x23}}, // A's order is no preference
		{[]byte{0x24, 0x22, 0x21}, []byte{69, 4, 1, 0x21}},
		{[]byte{0x23, 0x21, 0x23}, []byte{69, 4, 1, 0x21}}, // twice is not valid
	} {
		e := newRig(t).open(false, opts{}, script{ENO: wirepeer.BuildENO(c.offer...)}, config{})
		if got := e.ours()[0].ENO(); !bytes.Equal(got, c.want) {
			t.Errorf("%x: answer %x, want %x", c.offer, got, c.want)
		}
	}
}

func TestRFC8547_4_5_NoValidTEPIsInClear(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		for _, subs := range [][]byte{nil, {0x24}, {0x6f, 0x20}, {0x23, 0x23}} {
			e := newRig(t).plain(active, opts{}, script{ENO: option(active, subs...)}, tcpcrypt.ReasonNoCommonTEP)
			if !active && e.ours()[0].HasENO() {
				t.Errorf("%x: answered", subs)
			}
		}
	})
}

func TestRFC8547_4_8_TamperedTranscriptFails(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		from, to := []byte{69, 4, 0x21, 0x23}, []byte{69, 4, 0x23, 0x21}
		if active {
			from, to = []byte{69, 4, 1, 0x23}, []byte{69, 4, 0x11, 0x23}
		}
		e := newRig(t).open(active, opts{}, script{ENO: from, Out: swap(from, to)}, config{})
		e.s.Send(wirepeer.Frame{Data: []byte("x")})
		e.aborted(tcpcrypt.ErrAuth)
	})
}

// TestRFC8547_10_RequireNeverInClear: a downgrade ends the connection before any data.
func TestRFC8547_10_RequireNeverInClear(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	wait, l := r.start(opts{Policy: stack.Require}, script{})
	defer l.Close()
	if _, err := wait(); err == nil {
		t.Error("a connection in clear under require")
	}
	r = newRig(t)
	_, at := r.listen(opts{Policy: stack.Require})
	for _, s := range []script{{}, {ENO: wirepeer.BuildENO(0x23), Mark: wirepeer.MarkExcept(1)}} {
		peer, err := r.host.Open(peerAddr, at, s)
		if err != nil {
			t.Fatal(err)
		}
		(&end{t: t, ctx: r.ctx, peer: peer}).reset()
		peer.Forget()
	}
}
