package tcpcrypt

import (
	"fmt"
	"slices"
	"strings"
)

// A TEP is a TCP encryption protocol's identifier, the glt of a suboption
// (RFC 8547, section 4.1; RFC 8548, section 7).
type TEP uint8

// The TEPs of tcpcrypt, by the key exchange they use.
const (
	P256       TEP = 0x21
	P521       TEP = 0x22
	Curve25519 TEP = 0x23
	Curve448   TEP = 0x24
)

// An AEAD is RFC 8548's sym_cipher (section 7).
type AEAD uint16

// The AEADs of tcpcrypt.
const (
	AES128GCM        AEAD = 0x0001
	AES256GCM        AEAD = 0x0002
	ChaCha20Poly1305 AEAD = 0x0010
)

// A Role is the part a host plays, fixed by ENO (RFC 8547, section 4.3).
type Role uint8

// The roles. RoleA sends Init1.
const (
	RoleA Role = iota
	RoleB
)

// A Reason says why a connection is not encrypted. The set is closed: the same words
// stand in tables, logs and JSON.
type Reason string

// The reasons.
const (
	ReasonNoENO       Reason = "no-eno"        // the peer's SYN had no well-formed ENO option
	ReasonNoCommonTEP Reason = "no-common-tep" // no TEP is valid for both
	ReasonSameRole    Reason = "same-role"     // both hosts claimed the same role
	ReasonStripped    Reason = "stripped"      // ENO was agreed on, and missing in a later segment
	ReasonFallback    Reason = "fallback"      // SYNs with ENO went unanswered, one without did not
	ReasonPolicy      Reason = "policy"        // our own policy
	ReasonLimit       Reason = "limit"         // one of our limits was reached, or there was no room
	ReasonOpening     Reason = "opening"       // not yet decided
)

// DefaultTEPs and DefaultAEADs are what nil means in Options, most preferred first.
func DefaultTEPs() []TEP { return []TEP{Curve25519, P256} }

// DefaultAEADs: see DefaultTEPs.
func DefaultAEADs() []AEAD { return []AEAD{AES128GCM, ChaCha20Poly1305} }

// TEPs and AEADs list all that this package implements.
func TEPs() []TEP { return []TEP{Curve25519, P256, P521, Curve448} }

// AEADs: see TEPs.
func AEADs() []AEAD { return []AEAD{AES128GCM, ChaCha20Poly1305, AES256GCM} }

// String returns the TEP's name as in the configuration.
func (t TEP) String() string {
	switch t {
	case P256:
		return "p256"
	case P521:
		return "p521"
	case Curve25519:
		return "curve25519"
	case Curve448:
		return "curve448"
	default:
		return fmt.Sprintf("tep-0x%02x", uint8(t))
	}
}

// String returns the AEAD's name as in the configuration.
func (a AEAD) String() string {
	switch a {
	case AES128GCM:
		return "aes128gcm"
	case AES256GCM:
		return "aes256gcm"
	case ChaCha20Poly1305:
		return "chacha20poly1305"
	default:
		return fmt.Sprintf("aead-0x%04x", uint16(a))
	}
}

// String returns "A" or "B".
func (r Role) String() string {
	if r == RoleB {
		return "B"
	}
	return "A"
}

// ParseTEP is the inverse of TEP.String.
func ParseTEP(name string) (TEP, error) { return parseName("TEP", name, TEPs()) }

// ParseAEAD is the inverse of AEAD.String.
func ParseAEAD(name string) (AEAD, error) { return parseName("AEAD", name, AEADs()) }

func parseName[T fmt.Stringer](kind, name string, all []T) (T, error) {
	names := make([]string, len(all))
	for i, v := range all {
		if names[i] = v.String(); names[i] == name {
			return v, nil
		}
	}
	slices.Sort(names)
	var zero T
	return zero, fmt.Errorf("tcpcrypt: unknown %s %q, want one of: %s", kind, name, strings.Join(names, ", "))
}
