package stack

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"
)

// toAddr is a's netip form; the zero Address gives the zero Addr.
func toAddr(a tcpip.Address) netip.Addr {
	switch a.Len() {
	case 4:
		return netip.AddrFrom4(a.As4())
	case 16:
		return netip.AddrFrom16(a.As16())
	default:
		return netip.Addr{}
	}
}

func fromAddr(a netip.Addr) tcpip.Address {
	if a.Is4() {
		return tcpip.AddrFrom4(a.As4())
	}
	return tcpip.AddrFrom16(a.As16())
}

func fullAddress(nic tcpip.NICID, a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: fromAddr(a.Addr()), Port: a.Port()}
}

func networkProtocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// local and remote are the ends of id as netstack sees them: local is what a packet
// was sent to.
func local(id nstack.TransportEndpointID) netip.AddrPort {
	return netip.AddrPortFrom(toAddr(id.LocalAddress), id.LocalPort)
}

func remote(id nstack.TransportEndpointID) netip.AddrPort {
	return netip.AddrPortFrom(toAddr(id.RemoteAddress), id.RemotePort)
}
