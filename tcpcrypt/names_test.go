package tcpcrypt

import (
	"errors"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	for _, tep := range TEPs() {
		if got, err := ParseTEP(tep.String()); err != nil || got != tep {
			t.Errorf("ParseTEP(%q) = %v, %v", tep, got, err)
		}
	}
	for _, aead := range AEADs() {
		if got, err := ParseAEAD(aead.String()); err != nil || got != aead {
			t.Errorf("ParseAEAD(%q) = %v, %v", aead, got, err)
		}
	}
	for _, name := range []string{"", "P256", "tep-0x20", "x25519"} {
		if got, err := ParseTEP(name); err == nil || !strings.Contains(err.Error(), "curve25519, curve448, p256, p521") {
			t.Errorf("ParseTEP(%q) = %v, %v", name, got, err)
		}
	}
	if got := TEP(0x20).String() + " " + AEAD(3).String(); got != "tep-0x20 aead-0x0003" {
		t.Errorf("unknown ones are %q", got)
	}
	id := SessionID{0x23, 0xff}
	if got := id.String(); len(got) != 2*SessionIDLen || !strings.HasPrefix(got, "23ff00") {
		t.Errorf("session ID prints %q", got)
	}
}

// TestErrorsAreDistinct: a caller can tell each from the others.
func TestErrorsAreDistinct(t *testing.T) {
	all := []error{ErrNeedMore, ErrMalformed, ErrBadMagic, ErrBadPublicKey, ErrZeroSharedSecret, ErrNoCommonAEAD,
		ErrNotOffered, ErrAuth, ErrTruncated, ErrAfterFIN, ErrTooLong, ErrFINSealed, ErrWiped}
	for i, e := range all {
		for j, o := range all {
			if errors.Is(e, o) != (i == j) {
				t.Errorf("%v is %v", e, o)
			}
		}
	}
	e := &ParseError{Field: "clen", Offset: 1, Reason: "3, want at least 17"}
	if !errors.Is(e, ErrMalformed) || !strings.Contains(e.Error(), "clen at byte 1: 3, want") {
		t.Errorf("%v", e)
	}
}
