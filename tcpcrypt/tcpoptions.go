package tcpcrypt

// OptionKind is ENO's TCP option kind (RFC 8547, section 4.1).
const OptionKind = 69

const (
	tcpOptionEOL = 0
	tcpOptionNOP = 1
)

// NonSYNOption returns the option in segments without SYN: kind and length, no
// contents (RFC 8547, section 4.1).
func NonSYNOption() []byte { return []byte{OptionKind, 2} }

// findENO looks for ENO options in the raw option area of a TCP header. eno is the
// first of them, kind and length included, and aliases area; count is how many there
// are. An area that is malformed from some byte on has no options from there on, as
// for any TCP option.
func findENO(area []byte) (eno []byte, count int) {
	for i := 0; i < len(area); {
		switch area[i] {
		case tcpOptionEOL:
			return eno, count
		case tcpOptionNOP:
			i++
			continue
		}
		if i+1 >= len(area) {
			return eno, count
		}
		n := int(area[i+1])
		if n < 2 || n > len(area)-i {
			return eno, count
		}
		if area[i] == OptionKind {
			if count == 0 {
				eno = area[i : i+n]
			}
			count++
		}
		i += n
	}
	return eno, count
}

// hasENO is about a segment without SYN, where only presence counts.
func hasENO(area []byte) bool {
	_, count := findENO(area)
	return count > 0
}
