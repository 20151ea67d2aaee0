package tcpcrypt

// A choice is what two SYN-form options come to (RFC 8547, sections 4.3 to 4.5).
type choice struct {
	ok     bool
	reason Reason    // if not ok
	a, b   enoOption // by role
	oneIsA bool      // the first option given was A's
	tep    TEP
	resume bool      // B answered A's offer to resume
	sub    suboption // B's, of tep
}

// choose applies ENO's rules to the options that the two hosts sent. fits reports
// whether B's resumption data answers A's, for a TEP that both offered to resume.
func choose(one, two enoOption, fits func(t TEP, a, b []byte) bool) choice {
	b1, b2 := one.global()&passiveBit, two.global()&passiveBit
	if b1 == b2 {
		return choice{reason: ReasonSameRole}
	}
	c := choice{a: one, b: two, oneIsA: true}
	if b1 == passiveBit {
		c.a, c.b, c.oneIsA = two, one, false
	}
	// The last valid one in B's option: B lists in order of increasing preference.
	for i := len(c.b.subs) - 1; i >= 0; i-- {
		t := TEP(c.b.subs[i].glt)
		if !t.known() {
			continue
		}
		sub, ok := c.b.find(t)
		offer, ok2 := c.a.find(t)
		if !ok || !ok2 {
			continue
		}
		// v = 1 from B must answer an offer of A's. What fits nothing makes this
		// suboption invalid, so that a session ID with v = 1 always means resumption.
		if sub.v && (!offer.resumes() || !sub.resumes() || !fits(t, offer.data, sub.data)) {
			continue
		}
		c.ok, c.tep, c.resume, c.sub = true, t, sub.v, sub
		return c
	}
	return choice{reason: ReasonNoCommonTEP}
}

// known reports whether t is one of tcpcrypt's. The experimental 0x20 and what we do
// not know are skipped.
func (t TEP) known() bool { return t >= P256 && t <= Curve448 }

// resumes reports whether s has the form of a resumption suboption (RFC 8548, section
// 3.5): an identifier half and a nonce. An offer that has not counts as v = 0.
func (s suboption) resumes() bool {
	return s.v && len(s.data) >= halfLen && len(s.data) <= halfLen+maxNonceLen
}
