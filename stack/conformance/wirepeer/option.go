package wirepeer

import (
	"encoding/binary"
	"slices"
)

// Kinds of TCP options.
const (
	optionEnd           = 0
	optionNOP           = 1
	optionMSS           = 2
	optionWindowScale   = 3
	optionSACKPermitted = 4
	optionTimestamps    = 8

	// OptionFastOpen is the kind of TCP Fast Open's option (RFC 7413).
	OptionFastOpen = 34
	// OptionENO is the kind of TCP-ENO's option (RFC 8547, section 4.1).
	OptionENO = 69
)

// NonSYN is the non-SYN form of the ENO option as tcpcrypt sends it.
var NonSYN = []byte{OptionENO, 2}

// An option is one TCP option with its kind and length bytes.
type option []byte

func (o option) kind() byte   { return o[0] }
func (o option) data() []byte { return o[2:] }

// splitOptions lists the options in an options area, padding left out, up to the first
// impossible length.
func splitOptions(area []byte) (all []option) {
	for len(area) > 0 {
		switch area[0] {
		case optionEnd:
			return all
		case optionNOP:
			area = area[1:]
			continue
		}
		if len(area) < 2 || area[1] < 2 || int(area[1]) > len(area) {
			return all
		}
		n := int(area[1])
		all = append(all, option(area[:n:n]))
		area = area[n:]
	}
	return all
}

// ENOOptions returns the ENO options in an options area, whole: kind and length too.
func ENOOptions(area []byte) [][]byte {
	all := splitOptions(area)
	var found [][]byte
	for _, o := range all {
		if o.kind() == OptionENO {
			found = append(found, o)
		}
	}
	return found
}

// HasENO reports whether the segment has an ENO option.
func (s *Segment) HasENO() bool { return len(ENOOptions(s.Options)) > 0 }

// ENO returns the ENO option of a SYN: nil if there is none, or more than one.
func (s *Segment) ENO() []byte {
	if found := ENOOptions(s.Options); len(found) == 1 {
		return found[0]
	}
	return nil
}

// lookup finds the data of the first option of that kind.
func (s *Segment) lookup(kind byte, length int) ([]byte, bool) {
	all := splitOptions(s.Options)
	i := slices.IndexFunc(all, func(o option) bool { return o.kind() == kind && len(o) == length })
	if i < 0 {
		return nil, false
	}
	return all[i].data(), true
}

func (s *Segment) mss() (uint16, bool) {
	data, ok := s.lookup(optionMSS, 4)
	if !ok {
		return 0, false
	}
	return binary.BigEndian.Uint16(data), true
}

func (s *Segment) windowScale() (uint8, bool) {
	data, ok := s.lookup(optionWindowScale, 3)
	if !ok {
		return 0, false
	}
	return min(data[0], 14), true
}

func (s *Segment) timestamp() (value uint32, ok bool) {
	data, ok := s.lookup(optionTimestamps, 10)
	if !ok {
		return 0, false
	}
	return binary.BigEndian.Uint32(data), true
}
