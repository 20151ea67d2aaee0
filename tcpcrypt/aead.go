package tcpcrypt

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	aeadNonceLen = 12
	tagLen       = 16

	frameIDMagic = 0x44415441 // FRAME_ID_MAGIC (RFC 8548, section 4.3)
)

func (a AEAD) known() bool { return a == AES128GCM || a == AES256GCM || a == ChaCha20Poly1305 }

// keyLen is ae_key_len in bytes (RFC 8548, section 6).
func (a AEAD) keyLen() int {
	if a == AES128GCM {
		return 16
	}
	return 32
}

// A trafficKey is k_ab[j] or k_ba[j]: the AEAD and the nonce randomizer NR (RFC 8548,
// sections 3.3, 3.6).
type trafficKey struct {
	aead       cipher.AEAD
	randomizer [aeadNonceLen]byte
	nonce      [aeadNonceLen]byte // scratch: a field, so that no call moves it to the heap
}

// Format makes every verb print nothing of use.
func (*trafficKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// trafficKey derives the key of the direction that the host of role sends in.
func (s *secret) trafficKey(a AEAD, role Role) (*trafficKey, error) {
	label := byte(constKeyA)
	if role == RoleB {
		label = constKeyB
	}
	material := s.cprf(label, nil, a.keyLen()+aeadNonceLen)
	defer clear(material)
	k := new(trafficKey)
	copy(k.randomizer[:], material[a.keyLen():])
	var err error
	switch a {
	case AES128GCM, AES256GCM:
		var block cipher.Block
		if block, err = aes.NewCipher(material[:a.keyLen()]); err == nil {
			k.aead, err = cipher.NewGCM(block)
		}
	case ChaCha20Poly1305:
		k.aead, err = chacha20poly1305.New(material[:a.keyLen()])
	default:
		err = fmt.Errorf("tcpcrypt: unknown AEAD %v", a)
	}
	return k, err
}

// nonceAt is the frame ID of a frame at offset, XOR NR. The result is overwritten by
// the next call.
func (k *trafficKey) nonceAt(offset uint64) []byte {
	binary.BigEndian.PutUint32(k.nonce[:4], frameIDMagic)
	binary.BigEndian.PutUint64(k.nonce[4:], offset)
	for i := range k.nonce {
		k.nonce[i] ^= k.randomizer[i]
	}
	return k.nonce[:]
}

// wipe clears what is ours to clear and drops the AEAD with its expanded key.
func (k *trafficKey) wipe() {
	clear(k.randomizer[:])
	clear(k.nonce[:])
	k.aead = nil
}
