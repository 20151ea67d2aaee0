package wirepeer

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cloudflare/circl/dh/x448"
	"golang.org/x/crypto/chacha20poly1305"
)

// A TEP is one of RFC 8548's, section 7.
type TEP byte

// The TEPs.
const (
	P256       TEP = 0x21
	P521       TEP = 0x22
	Curve25519 TEP = 0x23
	Curve448   TEP = 0x24
)

// TEPs are all of them.
var TEPs = []TEP{P256, P521, Curve25519, Curve448}

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
	}
	return fmt.Sprintf("TEP 0x%02x", byte(t))
}

// A Cipher is a sym_cipher of RFC 8548, section 7.
type Cipher uint16

// The ciphers.
const (
	AES128GCM        Cipher = 0x0001
	AES256GCM        Cipher = 0x0002
	ChaCha20Poly1305 Cipher = 0x0010
)

// Ciphers are all of them.
var Ciphers = []Cipher{AES128GCM, AES256GCM, ChaCha20Poly1305}

func (c Cipher) String() string {
	switch c {
	case AES128GCM:
		return "aes128gcm"
	case AES256GCM:
		return "aes256gcm"
	case ChaCha20Poly1305:
		return "chacha20poly1305"
	}
	return fmt.Sprintf("cipher 0x%04x", uint16(c))
}

func (c Cipher) keyLen() int {
	if c == AES128GCM {
		return 16
	}
	return 32
}

const (
	nonceLen = 12
	tagLen   = 16
)

func (c Cipher) aead(key []byte) (cipher.AEAD, error) {
	if c == ChaCha20Poly1305 {
		return chacha20poly1305.New(key)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Ways in which a public key is bad (RFC 8548, section 5).
var (
	errBadPoint     = errors.New("bad-point")
	errBadKeyLength = errors.New("bad-pubkey-length")
	errZeroSecret   = errors.New("zero-shared-secret")
	errTooShort     = errors.New("init-too-short")
)

// A keyPair is ephemeral.
type keyPair struct {
	tep    TEP
	nist   *ecdh.PrivateKey // P-256, P-521, X25519
	goldi  x448.Key
	public []byte // as on the wire
}

func (t TEP) curve() (ecdh.Curve, elliptic.Curve) {
	switch t {
	case P256:
		return ecdh.P256(), elliptic.P256()
	case P521:
		return ecdh.P521(), elliptic.P521()
	default:
		return ecdh.X25519(), nil
	}
}

// newKeyPair makes the pair of a private key; nil makes a random one.
func newKeyPair(t TEP, private []byte) (*keyPair, error) {
	k := &keyPair{tep: t}
	if t == Curve448 {
		if private == nil {
			private = make([]byte, x448.Size)
			_, _ = rand.Read(private) // never fails
		}
		copy(k.goldi[:], private)
		var public x448.Key
		x448.KeyGen(&public, &k.goldi)
		k.public = public[:]
		return k, nil
	}
	curve, nist := t.curve()
	var err error
	if private == nil {
		k.nist, err = curve.GenerateKey(rand.Reader)
	} else {
		k.nist, err = curve.NewPrivateKey(private)
	}
	if err != nil {
		return nil, err
	}
	k.public = k.nist.PublicKey().Bytes()
	if nist != nil {
		k.public = lengthPrefixed(compress(k.public))
	}
	return k, nil
}

// compress turns 04 | x | y into 02 or 03 | x.
func compress(point []byte) []byte {
	half := (len(point) - 1) / 2
	return append([]byte{2 + point[len(point)-1]&1}, point[1:1+half]...)
}

// lengthPrefixed puts the length in front, which counts itself.
func lengthPrefixed(point []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(2+len(point))), point...)
}

// splitPublic takes a public key off the front of b.
func (t TEP) splitPublic(b []byte) (public, rest []byte, err error) {
	n := 0
	switch t {
	case P256, P521:
		if len(b) < 2 {
			return nil, nil, errTooShort
		}
		n = int(binary.BigEndian.Uint16(b))
		size := 32
		if t == P521 {
			size = 66
		}
		if n != 2+1+size && n != 2+1+2*size {
			return nil, nil, errBadKeyLength
		}
	case Curve25519:
		n = 32
	case Curve448:
		n = x448.Size
	}
	if len(b) < n {
		return nil, nil, errTooShort
	}
	return b[:n], b[n:], nil
}

// shared is ES: the Diffie-Hellman result with the peer's public key as on the wire.
func (k *keyPair) shared(public []byte) ([]byte, error) {
	if k.tep == Curve448 {
		var theirs, es x448.Key
		copy(theirs[:], public)
		if !x448.Shared(&es, &k.goldi, &theirs) {
			return nil, errZeroSecret
		}
		return es[:], nil
	}
	curve, nist := k.tep.curve()
	if nist != nil {
		public = public[2:]
		size := (nist.Params().BitSize + 7) / 8
		if len(public) == 1+size {
			x, y := elliptic.UnmarshalCompressed(nist, public)
			if x == nil {
				return nil, errBadPoint
			}
			public = append(append([]byte{4}, x.FillBytes(make([]byte, size))...), y.FillBytes(make([]byte, size))...)
		}
	}
	theirs, err := curve.NewPublicKey(public)
	if err != nil {
		return nil, errBadPoint
	}
	es, err := k.nist.ECDH(theirs)
	if err != nil {
		return nil, errZeroSecret // the one way in which X25519 fails; NIST points were checked
	}
	return es, nil
}
