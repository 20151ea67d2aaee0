package tcpcrypt

import (
	"encoding/binary"
	"errors"
)

// An Opened is what was in a frame.
type Opened struct {
	Data      []byte // aliases the frame
	FIN       bool   // FINp: the last frame of this direction
	Rekeyed   bool   // it was the first under new keys
	HasUrgent bool
	Urgent    uint16 // offset of the last byte of urgent data from Data's first byte
}

// An Opener opens the frames of one direction, in order.
type Opener struct {
	gen    *generations
	aead   AEAD
	role   Role // whose direction it is, in the original session
	mk     *secret
	key    *trafficKey
	offset uint64
	fin    bool
	err    error // the first fatal error sticks
}

func newOpener(g *generations, mk *secret, a AEAD, role Role, offset uint64) (*Opener, error) {
	o := &Opener{gen: g, aead: a, role: role, mk: new(secret), offset: offset}
	o.mk.b = mk.b
	var err error
	o.key, err = mk.trafficKey(a, role)
	return o, err
}

// Offset is the position in the peer's TCP stream of the next frame.
func (o *Opener) Offset() uint64 { return o.offset }

// FrameLen returns the length in bytes of the whole frame, from at least its first
// FrameHeaderLen bytes: ErrNeedMore if there are fewer. Any other error is final.
func (o *Opener) FrameLen(header []byte) (int, error) {
	if o.err != nil {
		return 0, o.err
	}
	if o.fin && len(header) > 0 {
		return 0, o.fail(ErrAfterFIN)
	}
	h, err := parseFrameHeader(header)
	if errors.Is(err, ErrNeedMore) {
		return 0, err
	}
	if err != nil {
		return 0, o.fail(err)
	}
	return FrameHeaderLen + h.clen, nil
}

// Open opens one whole frame, of the length that FrameLen said, in place. Any error is
// final: nothing of the frame may be used, and the connection is to be reset.
func (o *Opener) Open(frame []byte) (Opened, error) {
	if o.err != nil {
		return Opened{}, o.err
	}
	opened, err := o.open(frame)
	if err != nil {
		return Opened{}, o.fail(err)
	}
	return opened, nil
}

func (o *Opener) open(frame []byte) (opened Opened, err error) {
	if o.fin {
		return opened, ErrAfterFIN
	}
	h, err := parseFrameHeader(frame)
	if err != nil {
		return opened, &ParseError{Field: "clen", Offset: 1, Reason: "frame too short"}
	}
	if len(frame) != FrameHeaderLen+h.clen {
		return opened, &ParseError{Field: "clen", Offset: 1, Reason: "not the length of the frame"}
	}
	key := o.key
	var mk *secret
	if h.rekey {
		mk = o.mk.masterKey(nil)
		if key, err = mk.trafficKey(o.aead, o.role); err != nil {
			return opened, err
		}
	}
	ad, body := frame[:FrameHeaderLen], frame[FrameHeaderLen:]
	plain, err := key.aead.Open(body[:0], key.nonceAt(o.offset), body, ad)
	if err != nil {
		if h.rekey {
			mk.wipe()
			key.wipe()
		}
		return opened, ErrAuth
	}
	o.offset += uint64(len(frame))
	if h.rekey {
		o.mk.wipe()
		o.key.wipe()
		o.mk, o.key = mk, key
		o.gen.remote.Add(1)
		opened.Rekeyed = true
	}
	flags := plain[0] // clen was at least one byte and the tag
	plain = plain[1:]
	if flags&urgentBit != 0 {
		if len(plain) < 2 {
			return Opened{}, &ParseError{Field: "urgent", Offset: 1, Reason: "plaintext too short for it"}
		}
		opened.HasUrgent, opened.Urgent = true, binary.BigEndian.Uint16(plain)
		plain = plain[2:]
	}
	opened.Data, opened.FIN = plain, flags&finBit != 0
	o.fin = opened.FIN
	return opened, nil
}

// EndOfStream is asked when the peer's TCP stream has ended at a frame's boundary: nil
// after FINp, else ErrTruncated or an earlier error, and final.
func (o *Opener) EndOfStream() error {
	if o.err != nil {
		return o.err
	}
	if !o.fin {
		return o.fail(ErrTruncated)
	}
	return nil
}

func (o *Opener) fail(err error) error {
	o.err = err
	return err
}

func (o *Opener) wipe() {
	o.mk.wipe()
	o.key.wipe()
	if o.err == nil {
		o.err = ErrWiped
	}
}
