package stack

import (
	"net/netip"

	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// A Direction says which end opened a connection.
type Direction uint8

const (
	Outbound Direction = iota // a local program dialled
	Inbound                   // a remote host dialled
)

// String returns "outbound" or "inbound".
func (d Direction) String() string {
	if d == Inbound {
		return "inbound"
	}
	return "outbound"
}

// A State is where a connection is in its life.
type State uint8

const (
	Opening State = iota // one of the legs is not established
	Open                 // both legs stand
	Closed
)

// String returns "opening", "open" or "closed".
func (s State) String() string {
	switch s {
	case Opening:
		return "opening"
	case Open:
		return "open"
	default:
		return "closed"
	}
}

// A Conn is what is known of one connection at one moment.
type Conn struct {
	ID        uint64
	Direction Direction
	// Outbound: the program's own address. Inbound: the address that the remote dialled.
	Local  netip.AddrPort
	Remote netip.AddrPort // the wire peer
	State  State
	Policy Policy
	Label  string // the rule's

	Encrypted bool
	Reason    tcpcrypt.Reason // why not encrypted; empty if encrypted
	// The following are zero unless Encrypted, AEAD and SessionID also until the key exchange is done.
	Role      tcpcrypt.Role
	TEP       tcpcrypt.TEP
	AEAD      tcpcrypt.AEAD
	SessionID []byte // 33 bytes; a copy
	Resumed   bool

	PeerApplicationAware bool // the peer's bit; false also if the peer offers no ENO

	// How often the keys were replaced of what we send and of what we receive.
	GenerationSent, GenerationReceived uint64

	BytesSent     uint64 // application bytes given to the wire peer's leg
	BytesReceived uint64 // application bytes taken from the wire peer's leg
}
