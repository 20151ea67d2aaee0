package tcpcrypt

import "fmt"

// An enoOption is the parsed contents of a SYN-form ENO option (RFC 8547, section
// 4.1). It aliases what it was parsed from.
type enoOption struct {
	raw  []byte // kind and length included
	subs []suboption
}

// A suboption is one of a SYN-form option's (RFC 8547, sections 4.1, 4.2, 4.4).
type suboption struct {
	glt  byte   // below minTEP: a global suboption, else a TEP
	v    bool   // the TEP has (or may have) data
	data []byte // of a TEP with v = 1
}

const (
	vBit       = 0x80
	minTEP     = 0x20
	passiveBit = 0x01 // b of the global suboption
	awareBit   = 0x02 // a of the global suboption
)

func (s suboption) isTEP() bool { return s.glt >= minTEP }

// parseENO parses a SYN-form option, kind and length included. An error means that
// the whole option counts as absent.
func parseENO(raw []byte) (enoOption, error) {
	o := enoOption{raw: raw}
	if len(raw) < 2 || raw[0] != OptionKind || int(raw[1]) != len(raw) {
		return enoOption{}, &ParseError{Field: "length", Offset: 1, Reason: "not an ENO option"}
	}
	for i := 2; i < len(raw); {
		b := raw[i]
		i++
		switch glt := b &^ vBit; {
		case glt >= minTEP && b&vBit == 0:
			o.subs = append(o.subs, suboption{glt: glt})
		case glt >= minTEP:
			o.subs = append(o.subs, suboption{glt: glt, v: true, data: raw[i:]})
			i = len(raw)
		case b&vBit == 0:
			o.subs = append(o.subs, suboption{glt: glt})
		default: // a length byte, for the TEP that must follow
			n := int(glt) + 1
			if i >= len(raw) {
				return enoOption{}, &ParseError{Field: "length byte", Offset: i - 1, Reason: "at the end of the option"}
			}
			tep := raw[i]
			i++
			if tep&vBit == 0 || tep&^vBit < minTEP {
				return enoOption{}, &ParseError{Field: "length byte", Offset: i - 2, Reason: "not followed by a TEP with data"}
			}
			if n > len(raw)-i {
				return enoOption{}, &ParseError{Field: "length byte", Offset: i - 2,
					Reason: fmt.Sprintf("%d bytes of data, but %d are left", n, len(raw)-i)}
			}
			o.subs = append(o.subs, suboption{glt: tep &^ vBit, v: true, data: raw[i : i+n]})
			i += n
		}
	}
	return o, nil
}

// buildENO is the inverse of parseENO: the option with subs. Data of any but the last
// suboption is 1 to 32 bytes long.
func buildENO(subs []suboption) []byte {
	b := []byte{OptionKind, 0}
	for i, s := range subs {
		switch {
		case !s.v:
			b = append(b, s.glt)
		case i == len(subs)-1:
			b = append(append(b, s.glt|vBit), s.data...)
		default:
			b = append(append(b, vBit|byte(len(s.data)-1), s.glt|vBit), s.data...)
		}
	}
	b[1] = byte(len(b))
	return b
}

// global returns the global suboption: of several the first counts, and 0 stands for
// none.
func (o enoOption) global() byte {
	for _, s := range o.subs {
		if !s.isTEP() {
			return s.glt
		}
	}
	return 0
}

// find returns the suboption of a TEP. ok is false if there is none or more than one:
// tcpcrypt defines no meaning of a repeated TEP.
func (o enoOption) find(t TEP) (sub suboption, ok bool) {
	count := 0
	for _, s := range o.subs {
		if s.glt == byte(t) {
			sub = s
			count++
		}
	}
	return sub, count == 1
}

// receivedENO returns the ENO option of a SYN's option area; ok is false if it has
// none, more than one, or an ill-formed one (RFC 8547, section 4.1). The result is a
// copy.
func receivedENO(area []byte) (enoOption, bool) {
	raw, count := findENO(area)
	if count != 1 {
		return enoOption{}, false
	}
	o, err := parseENO(append([]byte(nil), raw...))
	return o, err == nil
}
