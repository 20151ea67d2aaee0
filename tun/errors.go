package tun

import "net"

// ErrClosed is the error of everything that is used after its Close. It is
// net.ErrClosed, which is also what package os returns then.
var ErrClosed = net.ErrClosed

// maxPacket is the largest IP packet, in bytes: the length field's 16 bits.
const maxPacket = 65535
