package tcpcrypt

import (
	"encoding/binary"
	"fmt"
)

const (
	init1Magic = 0x15101a0e // INIT1_MAGIC (RFC 8548, section 4.3)
	init2Magic = 0x097105e0 // INIT2_MAGIC

	initHeaderLen = 8  // magic and message_len
	initNonceLen  = 32 // N_A and N_B
)

// Init1Magic returns the first bytes of the stream of a host that plays role A in a
// fresh key exchange, INIT1_MAGIC (RFC 8548, section 4.3): who takes its connection as
// plain can tell by them that the peer does not.
func Init1Magic() []byte { return binary.BigEndian.AppendUint32(nil, init1Magic) }

// An init1 is the first message of a key exchange, A's (RFC 8548, section 4.1). It
// aliases what it was parsed from.
type init1 struct {
	aeads []AEAD // sym_cipher list, in A's order
	nonce []byte // N_A
	pub   []byte // Pub_A, without its length field when parsed, with it when appended
}

// An init2 is B's answer.
type init2 struct {
	aead  AEAD
	nonce []byte
	pub   []byte
}

func (m init1) append(b []byte) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint32(b, init1Magic)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = append(b, byte(len(m.aeads)))
	for _, a := range m.aeads {
		b = binary.BigEndian.AppendUint16(b, uint16(a))
	}
	b = append(append(b, m.nonce...), m.pub...)
	binary.BigEndian.PutUint32(b[start+4:], uint32(len(b)-start))
	return b
}

// parseInit1 parses a whole message, of which parseInitHeader has seen the start.
func parseInit1(t TEP, b []byte) (m init1, err error) {
	if len(b) < initHeaderLen+1 {
		return m, &ParseError{Field: "nciphers", Offset: initHeaderLen, Reason: "message too short for it"}
	}
	n := int(b[initHeaderLen])
	if n == 0 {
		return m, fmt.Errorf("%w: nciphers is 0", ErrNoCommonAEAD)
	}
	at := initHeaderLen + 1
	if len(b) < at+2*n+initNonceLen {
		return m, &ParseError{Field: "nciphers", Offset: initHeaderLen, Reason: "message too short for them"}
	}
	m.aeads = make([]AEAD, n) // n is one byte
	for i := range m.aeads {
		m.aeads[i] = AEAD(binary.BigEndian.Uint16(b[at:]))
		at += 2
	}
	m.nonce = b[at : at+initNonceLen]
	at += initNonceLen
	m.pub, err = t.parsePublic(b[at:], at)
	return m, err
}

func (m init2) append(b []byte) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint32(b, init2Magic)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(m.aead))
	b = append(append(b, m.nonce...), m.pub...)
	binary.BigEndian.PutUint32(b[start+4:], uint32(len(b)-start))
	return b
}

// parseInit2 parses a whole message, of which parseInitHeader has seen the start.
func parseInit2(t TEP, b []byte) (m init2, err error) {
	at := initHeaderLen
	if len(b) < at+2+initNonceLen {
		return m, &ParseError{Field: "N_B", Offset: at, Reason: "message too short for it"}
	}
	m.aead = AEAD(binary.BigEndian.Uint16(b[at:]))
	at += 2
	m.nonce = b[at : at+initNonceLen]
	at += initNonceLen
	m.pub, err = t.parsePublic(b[at:], at)
	return m, err
}

// parseInitHeader looks at the first bytes of an Init message: its magic as far as it
// is there, then message_len, which counts the whole message. ErrNeedMore means that
// b is too short to tell.
func parseInitHeader(t TEP, magic uint32, b []byte) (messageLen int, err error) {
	var want [4]byte
	binary.BigEndian.PutUint32(want[:], magic)
	for i := range min(len(b), len(want)) {
		if b[i] != want[i] {
			return 0, ErrBadMagic
		}
	}
	if len(b) < initHeaderLen {
		return 0, ErrNeedMore
	}
	least := initHeaderLen + 1 + initNonceLen + t.minPublicLen()
	if magic == init2Magic {
		least++ // sym_cipher has two bytes, nciphers one
	}
	switch n := binary.BigEndian.Uint32(b[4:]); {
	case n < uint32(least):
		return 0, &ParseError{Field: "message_len", Offset: 4, Reason: fmt.Sprintf("%d, want at least %d", n, least)}
	case n > maxInitLen:
		return 0, &ParseError{Field: "message_len", Offset: 4, Reason: fmt.Sprintf("%d, want at most %d", n, maxInitLen)}
	default:
		return int(n), nil
	}
}
