package wirepeer

import (
	"bytes"
	"errors"
	"slices"
)

// The parts of a suboption's first byte (RFC 8547, section 4.1).
const (
	bitV       = 0x80
	firstTEP   = 0x20
	passiveBit = 0x01 // of the global suboption
	awareBit   = 0x02
)

// A Sub is one suboption of a SYN-form ENO option.
type Sub struct {
	TEP    byte // glt, without v; below 0x20 for a global suboption
	V      bool
	Data   []byte
	Global bool
}

// Ways in which an option is ill-formed.
var (
	errLengthAtEnd   = errors.New("length-byte-at-end")
	errLengthLength  = errors.New("length-byte-before-length-byte")
	errLengthGlobal  = errors.New("length-byte-before-global")
	errLengthV0      = errors.New("length-byte-before-v0")
	errLengthPastEnd = errors.New("length-past-end")
	errNotENO        = errors.New("not one whole ENO option")
	errSameRole      = errors.New("same-role")
	errNotAware      = errors.New("not-application-aware")
	errNoCommonTEP   = errors.New("no-common-tep")
	errNoOption      = errors.New("no-option")
	errIllFormed     = errors.New("ill-formed")
	errNotMarked     = errors.New("first segment with ACK has no ENO option")
)

// ParseENO takes a whole SYN-form option apart (RFC 8547, sections 4.1 and 4.4).
func ParseENO(option []byte) ([]Sub, error) {
	if len(option) < 2 || option[0] != OptionENO || int(option[1]) != len(option) {
		return nil, errNotENO
	}
	var subs []Sub
	for b := option[2:]; len(b) > 0; {
		v, glt := b[0]&bitV != 0, b[0]&^byte(bitV)
		switch {
		case glt < firstTEP && !v:
			subs = append(subs, Sub{TEP: glt, Global: true})
			b = b[1:]
		case glt < firstTEP:
			n := int(glt) + 1
			switch {
			case len(b) == 1:
				return nil, errLengthAtEnd
			case b[1]&^byte(bitV) < firstTEP && b[1]&bitV != 0:
				return nil, errLengthLength
			case b[1] < firstTEP:
				return nil, errLengthGlobal
			case b[1]&bitV == 0:
				return nil, errLengthV0
			case len(b) < 2+n:
				return nil, errLengthPastEnd
			}
			subs = append(subs, Sub{TEP: b[1] &^ bitV, V: true, Data: b[2 : 2+n]})
			b = b[2+n:]
		case v:
			subs = append(subs, Sub{TEP: glt, V: true, Data: b[1:]})
			b = nil
		default:
			subs = append(subs, Sub{TEP: glt})
			b = b[1:]
		}
	}
	return subs, nil
}

// BuildENO makes a whole SYN-form option of raw suboption bytes.
func BuildENO(suboptions ...byte) []byte {
	return append([]byte{OptionENO, byte(2 + len(suboptions))}, suboptions...)
}

// global is the first global suboption; absent means 0.
func global(subs []Sub) byte {
	for _, s := range subs {
		if s.Global {
			return s.TEP
		}
	}
	return 0
}

// find returns the suboption of that TEP, if it stands there exactly once.
func find(subs []Sub, tep byte) (Sub, bool) {
	var found []Sub
	for _, s := range subs {
		if !s.Global && s.TEP == tep {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		return Sub{}, false
	}
	return found[0], true
}

// A Resumable is what both ends know of a session that may be resumed.
type Resumable struct {
	TEP byte
	ID  [18]byte // resume[i] (RFC 8548, section 3.5): A's half, then B's
}

// The bounds of the data of a resumption suboption: an identifier half and a nonce.
const (
	halfLen       = 9
	maxNonceLen   = 8
	maxResumeData = halfLen + maxNonceLen
)

// fits reports whether offer and answer name the two halves of r.
func (r *Resumable) fits(tep byte, offer, answer []byte) bool {
	if r == nil || r.TEP != tep {
		return false
	}
	x, y := offer[:halfLen], answer[:halfLen]
	a, b := r.ID[:halfLen], r.ID[halfLen:]
	return bytes.Equal(x, a) && bytes.Equal(y, b) || bytes.Equal(x, b) && bytes.Equal(y, a)
}

func resumeData(s Sub) bool {
	return s.V && len(s.Data) >= halfLen && len(s.Data) <= maxResumeData
}

// An Agreement is what two SYN-form options lead to (RFC 8547, section 4.5).
type Agreement struct {
	FirstIsA   bool // the first option's sender plays A
	TEP        byte
	TEPByte    byte // as B sent it
	Resumed    bool
	Transcript []byte // RFC 8547, section 4.8
	OfferData  []byte // of the resumption suboptions: A's, B's
	AnswerData []byte
}

// known are the TEPs of RFC 8548, section 7.
var known = []byte{byte(P256), byte(P521), byte(Curve25519), byte(Curve448)}

// Agree works out what two options lead to; nil is none. aware1 and aware2 say that
// the first and second host insist on application-awareness.
func Agree(option1, option2 []byte, r *Resumable, aware1, aware2 bool) (*Agreement, error) {
	if option1 == nil || option2 == nil {
		return nil, errNoOption
	}
	subs1, err1 := ParseENO(option1)
	subs2, err2 := ParseENO(option2)
	if err1 != nil || err2 != nil {
		return nil, errIllFormed
	}
	g1, g2 := global(subs1), global(subs2)
	if g1&passiveBit == g2&passiveBit {
		return nil, errSameRole
	}
	if aware1 && g2&awareBit == 0 || aware2 && g1&awareBit == 0 {
		return nil, errNotAware
	}
	ag := &Agreement{FirstIsA: g2&passiveBit != 0}
	subsA, subsB, optionA, optionB := subs1, subs2, option1, option2
	if !ag.FirstIsA {
		subsA, subsB, optionA, optionB = subs2, subs1, option2, option1
	}
	ag.Transcript = slices.Concat(optionA, optionB)
	for _, s := range slices.Backward(subsB) {
		b, once := find(subsB, s.TEP)
		a, offered := find(subsA, s.TEP)
		if s.Global || !once || !offered || !slices.Contains(known, s.TEP) {
			continue
		}
		ag.TEP, ag.TEPByte = b.TEP, b.TEP
		if !b.V {
			return ag, nil
		}
		if resumeData(a) && resumeData(b) && r.fits(b.TEP, a.Data, b.Data) {
			ag.TEPByte |= bitV
			ag.Resumed, ag.OfferData, ag.AnswerData = true, a.Data, b.Data
			return ag, nil
		}
	}
	return nil, errNoCommonTEP
}
