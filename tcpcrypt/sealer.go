package tcpcrypt

import (
	"encoding/binary"
	"sync/atomic"
	"time"
)

// Flags of a frame to seal. The zero value is plain data.
type Flags struct {
	FIN bool // FINp: the last frame of this direction

	// HasUrgent sets URGp. Urgent is the offset of the last byte of urgent data from
	// the frame's first data byte (RFC 8548, section 3.7).
	HasUrgent bool
	Urgent    uint16
}

// A Sealer makes the frames of one direction. It alone makes nonces for its keys, from
// the position in the stream, which only grows: what it returns is to be sent once, in
// order, with nothing between.
type Sealer struct {
	gen    *generations
	aead   AEAD
	role   Role // whose direction it is, in the original session
	mk     *secret
	key    *trafficKey
	offset uint64 // of the next frame in the TCP stream
	err    error  // the first fatal error sticks

	initiate atomic.Bool // Rekey was called
	budget   keyBudget   // of each key
	used     keyBudget   // of key's, but for its age
	since    time.Time   // of key
}

func newSealer(g *generations, mk *secret, a AEAD, role Role, offset uint64) (*Sealer, error) {
	s := &Sealer{gen: g, aead: a, role: role, mk: new(secret), offset: offset, budget: a.budget(keyBudget{}), since: time.Now()}
	s.mk.b = mk.b
	var err error
	s.key, err = mk.trafficKey(a, role)
	return s, err
}

// Offset is the position in the TCP stream of the next frame: Init messages and
// everything sealed so far.
func (s *Sealer) Offset() uint64 { return s.offset }

// Rekey makes the next frame the first under new keys: it initiates a rekeying, unless
// that frame answers one anyway. While the peer has not answered an earlier one it
// waits for a frame with data (RFC 8548, section 3.8). It may be called by any
// goroutine.
func (s *Sealer) Rekey() { s.initiate.Store(true) }

// Seal appends one frame with plain, which may be empty, to dst. It allocates nothing
// if dst has room for len(plain) + Overhead (+ 2 with urgent data) bytes, but for the
// keys of a rekeying. plain is borrowed; it must not overlap dst's spare room, unless it
// lies exactly where the frame has its data, DataOffset bytes behind dst's end (+ 2 with
// urgent data), which saves a copy. A failure leaves dst as it was.
//
//	dst: | len(dst) | control clen | flags | plain | tag |
//	                0              3       4 = DataOffset
func (s *Sealer) Seal(dst, plain []byte, f Flags) ([]byte, error) {
	if s.err != nil {
		return dst, s.err
	}
	n := 1 + len(plain)
	if f.HasUrgent {
		n += 2
	}
	if n+tagLen > maxClen {
		return dst, ErrTooLong // nothing is lost: the caller may split
	}
	next := s.offset + uint64(FrameHeaderLen+n+tagLen)
	if next < s.offset {
		s.err = errOffset
		return dst, s.err
	}
	h := frameHeader{clen: n + tagLen, rekey: s.mustRekey(n, len(plain) == 0)}
	if h.rekey {
		if err := s.rekey(); err != nil {
			s.err = err
			return dst, err
		}
	}
	nonce := s.key.nonceAt(s.offset)
	s.offset = next // before sealing: a failure may skip a nonce, never use one twice
	s.used.frames++
	s.used.bytes += uint64(n)

	start := len(dst)
	out := h.append(dst)
	var flags byte
	if f.FIN {
		flags |= finBit
	}
	if f.HasUrgent {
		flags |= urgentBit
	}
	out = append(out, flags)
	if f.HasUrgent {
		out = binary.BigEndian.AppendUint16(out, f.Urgent)
	}
	out = append(out, plain...)
	body := start + FrameHeaderLen
	out = s.key.aead.Seal(out[:body], nonce, out[body:], out[start:body])
	if f.FIN {
		s.err = ErrFINSealed
		s.gen.sealed.Store(true)
	}
	return out, nil
}

// mustRekey decides whether the next frame, with n bytes of plaintext, is the first
// under new keys: as an answer, on request, or since this key has done its work. Only
// a frame with data may run ahead of a peer that has not answered yet (RFC 8548,
// section 3.8): else two hosts could drive each other on for ever.
func (s *Sealer) mustRekey(n int, empty bool) bool {
	if s.gen.owed() == 0 {
		spent := s.used.frames >= s.budget.frames || s.used.bytes+uint64(n) > s.budget.bytes ||
			time.Since(s.since) >= s.budget.age
		ahead := s.gen.local.Load() > s.gen.remote.Load()
		if !spent && !s.initiate.Load() || empty && ahead {
			return false
		}
	}
	s.initiate.Store(false) // an answer does what was asked for, too
	return true
}

// rekey goes to the next key set and wipes the old one.
func (s *Sealer) rekey() error {
	mk := s.mk.masterKey(nil)
	key, err := mk.trafficKey(s.aead, s.role)
	if err != nil {
		return err
	}
	s.mk.wipe()
	s.key.wipe()
	s.mk, s.key, s.used, s.since = mk, key, keyBudget{}, time.Now()
	s.gen.local.Add(1)
	return nil
}

func (s *Sealer) wipe() {
	s.mk.wipe()
	s.key.wipe()
	s.gen.sealed.Store(true)
	if s.err == nil {
		s.err = ErrWiped
	}
}
