package routing

import "net/netip"

// A Flow is a TCP connection that the rules capture although it is older than they
// are. Src is the end that is on, or behind, this host.
type Flow struct {
	Src, Dst netip.AddrPort
	Rule     int // index into Config.Outbound
	Policy   Policy
}
