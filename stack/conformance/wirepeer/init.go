package wirepeer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
)

// The magic numbers that Init messages begin with (RFC 8548, section 4.1).
var (
	init1Magic = []byte{0x15, 0x10, 0x1a, 0x0e}
	init2Magic = []byte{0x09, 0x71, 0x05, 0xe0}
)

const (
	initHeaderLen = 8 // magic and message_len
	initNonceLen  = 32
	maxInitLen    = 16 << 10
)

// Ways in which an Init message is bad.
var (
	errIncomplete = errors.New("incomplete")
	errBadMagic   = errors.New("bad-magic")
	errTooLong    = errors.New("init-too-long")
	errNoCiphers  = errors.New("no-ciphers")
	errNoCommon   = errors.New("no-common-cipher")
	errNotOffered = errors.New("cipher-not-offered")
)

// BuildInit1 makes A's message; tail is what receivers have to ignore.
func BuildInit1(ciphers []Cipher, nonce, public, tail []byte) []byte {
	fields := []byte{byte(len(ciphers))}
	for _, c := range ciphers {
		fields = binary.BigEndian.AppendUint16(fields, uint16(c))
	}
	return buildInit(init1Magic, fields, nonce, public, tail)
}

// BuildInit2 makes B's.
func BuildInit2(c Cipher, nonce, public, tail []byte) []byte {
	return buildInit(init2Magic, binary.BigEndian.AppendUint16(nil, uint16(c)), nonce, public, tail)
}

func buildInit(magic, fields, nonce, public, tail []byte) []byte {
	m := slices.Concat(magic, make([]byte, 4), fields, nonce, public, tail)
	binary.BigEndian.PutUint32(m[4:], uint32(len(m)))
	return m
}

// An initMessage is either message, taken apart.
type initMessage struct {
	whole   []byte // ignored bytes too
	ciphers []Cipher
	nonce   []byte
	public  []byte
}

// parseInit reads a message at the start of b: errIncomplete if it is right so far.
func parseInit(b, magic []byte, t TEP) (*initMessage, error) {
	if n := min(len(b), len(magic)); !bytes.Equal(b[:n], magic[:n]) {
		return nil, errBadMagic
	}
	if len(b) < initHeaderLen {
		return nil, errIncomplete
	}
	length := binary.BigEndian.Uint32(b[4:])
	switch {
	case length > maxInitLen:
		return nil, errTooLong
	case length < initHeaderLen+1:
		return nil, errTooShort
	case uint32(len(b)) < length:
		return nil, errIncomplete
	}
	m := &initMessage{whole: b[:length:length]}
	rest := m.whole[initHeaderLen:]
	n := 1
	if bytes.Equal(magic, init1Magic) {
		n, rest = int(rest[0]), rest[1:]
		if n == 0 {
			return nil, errNoCiphers
		}
	}
	if len(rest) < 2*n+initNonceLen {
		return nil, errTooShort
	}
	for range n {
		m.ciphers = append(m.ciphers, Cipher(binary.BigEndian.Uint16(rest)))
		rest = rest[2:]
	}
	m.nonce, rest = rest[:initNonceLen], rest[initNonceLen:]
	var err error
	m.public, _, err = t.splitPublic(rest)
	return m, err
}

// choose takes the first of ours that is among theirs.
func choose(ours, theirs []Cipher) (Cipher, error) {
	for _, c := range ours {
		if slices.Contains(theirs, c) {
			return c, nil
		}
	}
	return 0, errNoCommon
}
