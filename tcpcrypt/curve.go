package tcpcrypt

import (
	"crypto/ecdh"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cloudflare/circl/dh/x448"
)

// A keyPair is one side's ephemeral key of an exchange (RFC 8548, section 5). It is
// used once and wiped.
type keyPair interface {
	// public returns Pub as in an Init message, length included.
	public() []byte
	// agree returns the shared secret ES with the peer's key, as parsePublic
	// returned it. The caller wipes it.
	agree(peer []byte) ([]byte, error)
	wipe()
}

// newKeyPair makes an ephemeral key.
func newKeyPair(t TEP) (keyPair, error) {
	switch t {
	case P256, P521, Curve25519:
		k, err := t.ecdh().GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("tcpcrypt: cannot make a key: %w", err)
		}
		return &ecdhPair{t, k}, nil
	case Curve448:
		p := new(x448Pair)
		rand.Read(p.private[:])
		return p, nil
	default:
		return nil, fmt.Errorf("tcpcrypt: no key exchange for %v", t)
	}
}

func (t TEP) ecdh() ecdh.Curve {
	switch t {
	case P256:
		return ecdh.P256()
	case P521:
		return ecdh.P521()
	default:
		return ecdh.X25519()
	}
}

// elliptic returns a NIST curve, nil for the others.
func (t TEP) elliptic() elliptic.Curve {
	switch t {
	case P256:
		return elliptic.P256()
	case P521:
		return elliptic.P521()
	default:
		return nil
	}
}

// coordLen is the length in bytes of a NIST curve's coordinates.
func (t TEP) coordLen() int { return (t.elliptic().Params().BitSize + 7) / 8 }

// minPublicLen is the length of the shortest public key, its length field included.
func (t TEP) minPublicLen() int {
	switch t {
	case Curve25519:
		return 32
	case Curve448:
		return x448.Size
	default:
		return 2 + 1 + t.coordLen()
	}
}

// parsePublic takes a public key from the start of b, which is the rest of a complete
// Init message. key is what agree wants; what follows is ignored. field is the
// offset of b in the message.
func (t TEP) parsePublic(b []byte, field int) (key []byte, err error) {
	short := &ParseError{Field: "Pub", Offset: field, Reason: "message too short for it"}
	if t.elliptic() == nil {
		if len(b) < t.minPublicLen() {
			return nil, short
		}
		return b[:t.minPublicLen()], nil
	}
	if len(b) < 2 {
		return nil, short
	}
	n := int(binary.BigEndian.Uint16(b)) // counts itself
	if compressed, plain := 2+1+t.coordLen(), 2+1+2*t.coordLen(); n != compressed && n != plain {
		return nil, fmt.Errorf("%w: length %d, want %d or %d", ErrBadPublicKey, n, compressed, plain)
	}
	if len(b) < n {
		return nil, short
	}
	return b[2:n], nil
}

// An ecdhPair is a key of P-256, P-521 or X25519.
type ecdhPair struct {
	tep TEP
	key *ecdh.PrivateKey
}

// Format makes every verb print nothing of use.
func (*ecdhPair) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

func (p *ecdhPair) public() []byte {
	pub := p.key.PublicKey().Bytes()
	if p.tep.elliptic() == nil {
		return pub
	}
	n := p.tep.coordLen() // pub is 4, x, y
	b := make([]byte, 3, 3+n)
	binary.BigEndian.PutUint16(b, uint16(3+n))
	b[2] = 2 | pub[len(pub)-1]&1
	return append(b, pub[1:1+n]...)
}

func (p *ecdhPair) agree(peer []byte) ([]byte, error) {
	if curve := p.tep.elliptic(); curve != nil && len(peer) == 1+p.tep.coordLen() {
		x, y := elliptic.UnmarshalCompressed(curve, peer)
		if x == nil {
			return nil, fmt.Errorf("%w: not on the curve", ErrBadPublicKey)
		}
		n := p.tep.coordLen()
		full := make([]byte, 1+2*n)
		full[0] = 4
		x.FillBytes(full[1 : 1+n])
		y.FillBytes(full[1+n:])
		peer = full
	}
	pub, err := p.tep.ecdh().NewPublicKey(peer)
	if err != nil {
		return nil, fmt.Errorf("%w: not on the curve", ErrBadPublicKey)
	}
	es, err := p.key.ECDH(pub)
	if err != nil { // X25519's only failure
		return nil, ErrZeroSharedSecret
	}
	return es, nil
}

// wipe drops the key: crypto/ecdh does not let its bytes be cleared.
func (p *ecdhPair) wipe() { p.key = nil }

// An x448Pair is a key of X448.
type x448Pair struct{ private x448.Key }

// Format makes every verb print nothing of use.
func (*x448Pair) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

func (p *x448Pair) public() []byte {
	var pub x448.Key
	x448.KeyGen(&pub, &p.private)
	return pub[:]
}

func (p *x448Pair) agree(peer []byte) ([]byte, error) {
	var pub, es x448.Key
	if copy(pub[:], peer) != len(pub) {
		return nil, ErrBadPublicKey
	}
	if !x448.Shared(&es, &p.private, &pub) {
		return nil, ErrZeroSharedSecret
	}
	return es[:], nil
}

func (p *x448Pair) wipe() { clear(p.private[:]) }
