package conformance

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// fresh makes a session and returns what the peer may resume of it.
func (r *rig) fresh(active bool) *wirepeer.Chain {
	r.t.Helper()
	e := r.open(active, opts{NoResume: true}, script{}, config{})
	e.talk()
	return e.s.Chain()
}

// offer opens to us and returns the suboptions that we answer eno with, and the connection.
func (r *rig) offer(eno []byte) (*end, []byte) {
	r.t.Helper()
	e := r.accept(opts{}, script{ENO: eno})
	return e, e.ours()[0].ENO()
}

var v0 = []byte{69, 4, 1, 0x23}

// TestRFC8548_3_5_ResumesFromEitherEnd: halves, nonces and keys go by the original roles,
// the session ID has the v bit, and the stream begins with a frame.
func TestRFC8548_3_5_ResumesFromEitherEnd(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ first, second bool }{{true, true}, {true, false}, {false, false}} {
		t.Run(fmt.Sprintf("opened by us %t, then %t", c.first, c.second), func(t *testing.T) {
			r := newRig(t)
			chain := r.fresh(c.first)
			for i := range 3 {
				own, peer := chain.Halves()
				e := r.open(c.second, opts{}, script{}, config{Resume: chain})
				if !e.s.Resumed || e.s.Index != i+1 || e.s.ID[0] != 0xa3 {
					t.Fatalf("resumed %t, i %d, ID %x", e.s.Resumed, e.s.Index, e.s.ID)
				}
				eno := e.ours()[0].ENO()
				at := bytes.IndexByte(eno, 0xa3)
				if at < 0 || len(eno) != at+1+9+8 || !bytes.Equal(eno[at+1:at+10], peer) || bytes.Contains(eno, own) {
					t.Errorf("option %x, want half %x and 8 bytes", eno, peer)
				}
				e.talk()
				sec := e.security()
				if !sec.Resumed || (sec.Role == tcpcrypt.RoleA) != c.second {
					t.Errorf("%+v", sec)
				}
				if e.stream()[0] != 0 { // control, where Init's magic would be
					t.Errorf("stream begins with %x", e.stream()[:4])
				}
				e.s.Send(frame{Rekey: true})
				if f := e.frame(); !f.Rekey {
					t.Errorf("%+v", f)
				}
				chain = e.s.Chain()
			}
		})
	}
}

func TestRFC8548_3_5_NoncesOfAnyLength(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		r := newRig(t)
		chain := r.fresh(active)
		for ours := range 9 {
			for _, theirs := range []int{0, 8 - ours} {
				e := r.open(active, crypto(tcpcrypt.Options{ShortNonce: 8 - ours}), script{}, config{Resume: chain, Nonce: make([]byte, theirs)})
				if !e.s.Resumed {
					t.Fatalf("nonces %d and %d: not resumed", ours, theirs)
				}
				eno := e.ours()[0].ENO()
				if n := len(eno) - bytes.IndexByte(eno, 0xa3) - 10; n != ours {
					t.Errorf("nonce of %d bytes, want %d", n, ours)
				}
				e.talk()
				chain = e.s.Chain()
			}
		}
	})
}

// TestRFC8548_3_5_NoncesAreFresh: of several connections none repeats another's.
func TestRFC8548_3_5_NoncesAreFresh(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		r, seen := newRig(t), map[string]bool{}
		chain := r.fresh(active)
		for range 4 {
			e := r.open(active, opts{}, script{}, config{Resume: chain})
			eno := e.ours()[0].ENO()
			nonce := string(eno[len(eno)-8:])
			if seen[nonce] {
				t.Errorf("nonce %x again", nonce)
			}
			seen[nonce] = true
			chain = e.s.Chain()
		}
	})
}

func TestRFC8548_3_5_UnknownHalfIsAnsweredFresh(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	chain := r.fresh(false)
	own, peer := chain.Halves()
	other := slices.Clone(own)
	other[8] ^= 1
	for _, half := range [][]byte{peer, other, make([]byte, 9), chain.Ahead(9).Sub(nil)[1:]} {
		e, answer := r.offer(wirepeer.BuildENO(slices.Concat([]byte{0xa3}, half, make([]byte, 8))...))
		if !bytes.Equal(answer, v0) {
			t.Errorf("half %x: answer %x", half, answer)
		}
		var err error
		if e.s, err = wirepeer.Handshake(r.ctx, e.peer, config{}); err != nil {
			t.Fatal(err)
		}
		e.talk()
	}
}

// TestRFC8548_3_5_OfferOfOddLengthIsFresh: under 9 bytes and over 17 are no identifier.
func TestRFC8548_3_5_OfferOfOddLengthIsFresh(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	sub := r.fresh(false).Sub(make([]byte, 9))
	for _, n := range []int{0, 1, 8, 18} {
		if _, answer := r.offer(wirepeer.BuildENO(sub[:1+n]...)); !bytes.Equal(answer, v0) {
			t.Errorf("%d bytes: answer %x", n, answer)
		}
	}
}

// TestRFC8548_3_5_SecretNeverUsedTwice: neither after a connection, nor after one that
// was never established, nor when it was skipped.
func TestRFC8548_3_5_SecretNeverUsedTwice(t *testing.T) {
	t.Parallel()
	t.Run("used", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		cfg := config{Resume: r.fresh(false)}
		eno := cfg.Offer()
		e := r.open(false, opts{}, script{ENO: eno}, cfg)
		e.talk()
		if !e.s.Resumed {
			t.Fatal("not resumed")
		}
		if _, answer := r.offer(eno); !bytes.Equal(answer, v0) {
			t.Errorf("replay: answer %x", answer)
		}
	})
	t.Run("half-open", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		chain := r.fresh(false)
		eno := config{Resume: chain}.Offer()
		l, at := r.listen(opts{})
		half, err := r.host.Dial(r.ctx, netip.AddrPortFrom(peerAddr.Addr(), 0), at, script{ENO: eno, Out: func(s *wirepeer.Segment) []*wirepeer.Segment {
			if s.Flags&(wirepeer.SYN|wirepeer.RST) == 0 {
				return nil
			}
			return []*wirepeer.Segment{s}
		}})
		if err != nil {
			t.Fatal(err)
		}
		if got := received(half)[0].ENO(); len(got) != 3+1+17 {
			t.Fatalf("answer %x", got)
		}
		again, err := r.host.Dial(r.ctx, netip.AddrPortFrom(peerAddr.Addr(), 0), at, script{ENO: eno})
		if err != nil {
			t.Fatal(err)
		}
		if answer := received(again)[0].ENO(); !bytes.Equal(answer, v0) {
			t.Errorf("meanwhile: answer %x", answer)
		}
		half.Reset()
		_ = l.Close()
		if _, answer := r.offer(eno); !bytes.Equal(answer, v0) {
			t.Errorf("afterwards: answer %x", answer)
		}
		if e := r.open(false, opts{}, script{}, config{Resume: chain.Ahead(1)}); !e.s.Resumed {
			t.Error("the next one is not known")
		}
	})
	t.Run("skipped", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		chain := r.fresh(false)
		e := r.open(false, opts{}, script{}, config{Resume: chain.Ahead(8)}) // as far as is known
		if e.talk(); !e.s.Resumed {
			t.Fatal("8 ahead: not resumed")
		}
		for n := range 9 {
			if _, answer := r.offer(config{Resume: chain.Ahead(n)}.Offer()); !bytes.Equal(answer, v0) {
				t.Errorf("i+%d: answer %x", n, answer)
			}
		}
		if e := r.open(false, opts{}, script{}, config{Resume: chain.Ahead(9)}); !e.s.Resumed {
			t.Error("the next one is not known")
		}
	})
	t.Run("by either end", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		chain := r.fresh(true)
		e := r.open(true, opts{}, script{}, config{Resume: chain}) // ours
		if e.talk(); !e.s.Resumed {
			t.Fatal("not resumed")
		}
		if _, answer := r.offer(config{Resume: chain}.Offer()); !bytes.Equal(answer, v0) {
			t.Errorf("answer %x", answer)
		}
	})
}

// TestRFC8548_3_5_OpenerBurnsOneWithEachAttempt: also with one that fails.
func TestRFC8548_3_5_OpenerBurnsOneWithEachAttempt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	chain := r.fresh(true)
	for i := range 3 {
		var syn []byte
		wait, l := r.start(opts{}, script{Answer: func(s *wirepeer.Segment) []byte { syn = s.ENO(); return nil },
			Out: func(s *wirepeer.Segment) []*wirepeer.Segment {
				p := *s
				p.Flags, p.Options, p.Seq = wirepeer.RST|wirepeer.ACK, nil, 0
				return []*wirepeer.Segment{&p}
			}})
		if _, err := wait(); err == nil {
			t.Fatal("not refused")
		}
		l.Close()
		if _, peer := chain.Ahead(i).Halves(); !bytes.Contains(syn, peer) {
			t.Errorf("attempt %d: %x, want half %x", i, syn, peer)
		}
	}
	if e := r.open(true, opts{}, script{}, config{Resume: chain.Ahead(3)}); !e.s.Resumed {
		t.Error("not resumed")
	}
}

func TestRFC8548_3_5_AnswerWithoutVIsFresh(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fresh(true)
	e := r.open(true, opts{}, script{}, config{TEPs: []wirepeer.TEP{wirepeer.Curve25519}})
	if bytes.IndexByte(e.ours()[0].ENO(), 0xa3) < 0 {
		t.Fatal("nothing was offered")
	}
	e.talk()
	if e.security().Resumed || e.s.ID[0] != 0x23 {
		t.Errorf("resumed, ID %x", e.s.ID)
	}
}

// TestRFC8548_3_5_AnswerThatDoesNotFitIsIgnored: then nothing is left, or what stands
// before it.
func TestRFC8548_3_5_AnswerThatDoesNotFitIsIgnored(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(c *wirepeer.Chain) []byte{
		"another half":    func(*wirepeer.Chain) []byte { return append([]byte{0xa3}, make([]byte, 17)...) },
		"our own half":    func(c *wirepeer.Chain) []byte { _, half := c.Halves(); return append([]byte{0xa3}, half...) },
		"another i":       func(c *wirepeer.Chain) []byte { return c.Ahead(1).Sub(nil) },
		"8 bytes":         func(c *wirepeer.Chain) []byte { return c.Sub(nil)[:9] },
		"18 bytes":        func(c *wirepeer.Chain) []byte { return c.Sub(make([]byte, 9)) },
		"another TEP's v": func(*wirepeer.Chain) []byte { return append([]byte{0xa4}, make([]byte, 17)...) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			sub := answer(r.fresh(true))
			r.plain(true, opts{}, script{ENO: wirepeer.BuildENO(append([]byte{1}, sub...)...)}, tcpcrypt.ReasonNoCommonTEP)
			e := r.open(true, opts{}, script{ENO: wirepeer.BuildENO(append([]byte{1, 0x21}, sub...)...)}, config{})
			if e.talk(); e.s.TEP != wirepeer.P256 {
				t.Errorf("TEP %v", e.s.TEP)
			}
		})
	}
}

func TestRFC8548_3_5_UnaskedResumptionIsIgnored(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	chain := r.fresh(true)
	r.plain(true, opts{NoResume: true}, script{ENO: wirepeer.BuildENO(append([]byte{1}, chain.Sub(make([]byte, 8))...)...)}, tcpcrypt.ReasonNoCommonTEP)
}

// TestRFC8548_3_5_PassiveNeverResumesUnasked: v = 0 is answered with v = 0.
func TestRFC8548_3_5_PassiveNeverResumesUnasked(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fresh(false)
	if _, answer := r.offer(wirepeer.BuildENO(0x23)); !bytes.Equal(answer, v0) {
		t.Errorf("answer %x", answer)
	}
}

func TestRFC8548_3_5_ApplicationSaysNoResumption(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		r := newRig(t)
		chain := r.fresh(active)
		e := r.open(active, opts{NoResume: true}, script{}, config{Resume: chain})
		if e.talk(); e.s.Resumed || bytes.IndexByte(e.ours()[0].ENO(), 0xa3) >= 0 {
			t.Errorf("resumed %t, option %x", e.s.Resumed, e.ours()[0].ENO())
		}
	})
}

func TestRFC8548_3_5_ApplicationSaysKeepNothing(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		r := newRig(t)
		e := r.open(active, opts{NoKeep: true}, script{}, config{})
		e.talk()
		if n := len(r.cache.Sessions()); n != 0 {
			t.Errorf("%d sessions kept", n)
		}
		if e = r.open(active, opts{}, script{}, config{Resume: e.s.Chain()}); e.s.Resumed {
			t.Error("resumed")
		}
	})
}

// TestRFC8548_3_5_MSSStaysBesideTheIdentifier: with all the options that TCP has.
func TestRFC8548_3_5_MSSStaysBesideTheIdentifier(t *testing.T) {
	both(t, func(t *testing.T, active bool) {
		r := newRig(t)
		chain := r.fresh(active)
		all := script{Timestamps: true, SACKPermitted: true, WindowScale: 7}
		e := r.open(active, opts{}, all, config{TEPs: []wirepeer.TEP{wirepeer.Curve25519}, Resume: chain})
		e.talk()
		syn := e.ours()[0]
		if !e.s.Resumed || !bytes.Contains(syn.Options, []byte{2, 4}) || len(syn.Options) > 40 {
			t.Errorf("resumed %t: %v", e.s.Resumed, &syn)
		}
	})
}

// TestRFC8548_3_5_ApplicationFlushes what the connection produced, or resumed.
func TestRFC8548_3_5_ApplicationFlushes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.open(false, opts{}, script{}, config{})
	if e.talk(); !e.app.Forget() {
		t.Error("nothing to forget of a fresh session")
	}
	if _, answer := r.offer(config{Resume: e.s.Chain(), TEPs: []wirepeer.TEP{wirepeer.Curve25519}}.Offer()); !bytes.Equal(answer, v0) {
		t.Errorf("answer %x", answer)
	}
	e = r.open(false, opts{}, script{}, config{Resume: r.fresh(false)})
	if e.talk(); !e.s.Resumed || !e.app.Forget() {
		t.Error("nothing to forget of a resumed session")
	}
	if _, answer := r.offer(config{Resume: e.s.Chain(), TEPs: []wirepeer.TEP{wirepeer.Curve25519}}.Offer()); !bytes.Equal(answer, v0) {
		t.Errorf("answer %x", answer)
	}
}
