package wirepeer

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
)

// The parts of a frame (RFC 8548, sections 3.6 and 4.2).
const (
	frameHeaderLen = 3
	controlRekey   = 0x01
	flagFIN        = 0x01
	flagUrgent     = 0x02

	// MaxData is the most application bytes that one frame holds.
	MaxData = 65535 - tagLen - 1
)

var frameIDMagic = []byte{0x44, 0x41, 0x54, 0x41}

// A Frame is one record in clear.
type Frame struct {
	Data   []byte
	FIN    bool
	Rekey  bool   // first under the next key set
	Urgent *int   // the urgent field, if URGp is set
	Cres   byte   // reserved bits of control, in place
	Fres   byte   // reserved bits of flags, in place
	Offset uint64 // where it stood in the stream; not used for sealing
}

// Ways in which a frame is bad.
var (
	errFrameShort     = errors.New("frame-too-short")
	errPlaintextShort = errors.New("plaintext-too-short")
	errAuth           = errors.New("auth-failure")
)

// A direction seals or opens the frames of one sender.
type direction struct {
	cipher Cipher
	sender Role
	mk     []byte
	aead   cipher.AEAD
	random []byte // the nonce randomizer
	offset uint64 // of the next frame in the stream
}

func newDirection(mk []byte, sender Role, c Cipher, offset uint64) (*direction, error) {
	d := &direction{cipher: c, sender: sender, offset: offset}
	return d, d.use(mk)
}

// use switches to the key set of mk.
func (d *direction) use(mk []byte) error {
	key := trafficKey(mk, d.sender, d.cipher)
	aead, err := d.cipher.aead(key[:d.cipher.keyLen()])
	d.mk, d.aead, d.random = mk, aead, key[d.cipher.keyLen():]
	return err
}

// nonce is the frame ID XOR the nonce randomizer.
func (d *direction) nonce(offset uint64) []byte {
	n := binary.BigEndian.AppendUint64(append([]byte(nil), frameIDMagic...), offset)
	for i := range n {
		n[i] ^= d.random[i]
	}
	return n
}

// seal makes the next frame and moves on behind it.
func (d *direction) seal(f Frame) ([]byte, error) {
	if f.Rekey {
		if err := d.use(nextMaster(d.mk)); err != nil {
			return nil, err
		}
	}
	plain := []byte{f.Fres &^ (flagFIN | flagUrgent)}
	if f.FIN {
		plain[0] |= flagFIN
	}
	if f.Urgent != nil {
		plain[0] |= flagUrgent
		plain = binary.BigEndian.AppendUint16(plain, uint16(*f.Urgent))
	}
	plain = append(plain, f.Data...)
	if len(plain)+tagLen > 65535 {
		return nil, fmt.Errorf("%d bytes in a frame", len(f.Data))
	}
	frame := []byte{f.Cres &^ controlRekey}
	if f.Rekey {
		frame[0] |= controlRekey
	}
	frame = binary.BigEndian.AppendUint16(frame, uint16(len(plain)+tagLen))
	frame = d.aead.Seal(frame, d.nonce(d.offset), plain, frame)
	d.offset += uint64(len(frame))
	return frame, nil
}

// clen is the ciphertext's length from a frame's header.
func clen(header []byte) (int, error) {
	n := int(binary.BigEndian.Uint16(header[1:]))
	if n < tagLen+1 {
		return n, errFrameShort
	}
	return n, nil
}

// open undoes seal. A frame that is bad leaves d as it was.
func (d *direction) open(frame []byte) (f Frame, err error) {
	n, err := clen(frame)
	if err != nil {
		return f, err
	}
	if n != len(frame)-frameHeaderLen {
		return f, errFrameShort
	}
	next := *d
	f = Frame{Rekey: frame[0]&controlRekey != 0, Cres: frame[0] &^ controlRekey, Offset: d.offset}
	if f.Rekey {
		if err := next.use(nextMaster(d.mk)); err != nil {
			return f, err
		}
	}
	plain, err := next.aead.Open(nil, next.nonce(d.offset), frame[frameHeaderLen:], frame[:frameHeaderLen])
	if err != nil {
		return f, errAuth
	}
	next.offset += uint64(len(frame))
	flags := plain[0]
	plain = plain[1:]
	f.FIN, f.Fres = flags&flagFIN != 0, flags&^(flagFIN|flagUrgent)
	if flags&flagUrgent != 0 {
		if len(plain) < 2 {
			return f, errPlaintextShort
		}
		urgent := int(binary.BigEndian.Uint16(plain))
		f.Urgent, plain = &urgent, plain[2:]
	}
	f.Data = plain
	*d = next
	return f, nil
}
