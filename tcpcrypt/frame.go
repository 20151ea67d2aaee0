package tcpcrypt

import (
	"encoding/binary"
	"fmt"
)

const (
	// FrameHeaderLen is the length in bytes of control and clen (RFC 8548, section 4.2).
	FrameHeaderLen = 3

	// DataOffset is where the data is in a frame without urgent data.
	DataOffset = FrameHeaderLen + 1

	rekeyBit  = 0x01 // of control
	finBit    = 0x01 // FINp of flags
	urgentBit = 0x02 // URGp of flags

	maxClen = 1<<16 - 1
	minClen = 1 + tagLen // the flags alone

	// Overhead is how many bytes longer than its data a frame without urgent data is.
	Overhead = FrameHeaderLen + 1 + tagLen

	// MaxData is the largest number of bytes of data in a frame without urgent data.
	MaxData = maxClen - minClen
)

// A frameHeader is a frame's first three bytes, which are its AD too.
type frameHeader struct {
	rekey bool
	clen  int
}

// parseFrameHeader reads a header at the start of b. ErrNeedMore means that b ends too
// early.
func parseFrameHeader(b []byte) (h frameHeader, err error) {
	if len(b) < FrameHeaderLen {
		return h, ErrNeedMore
	}
	h = frameHeader{rekey: b[0]&rekeyBit != 0, clen: int(binary.BigEndian.Uint16(b[1:]))}
	if h.clen < minClen {
		return h, &ParseError{Field: "clen", Offset: 1, Reason: fmt.Sprintf("%d, want at least %d", h.clen, minClen)}
	}
	return h, nil
}

// append is the inverse but for reserved bits.
func (h frameHeader) append(b []byte) []byte {
	control := byte(0)
	if h.rekey {
		control = rekeyBit
	}
	return append(b, control, byte(h.clen>>8), byte(h.clen))
}
