// Package stack is the relay: gVisor's netstack assembled on a link (a TUN device),
// and for every TCP connection that arrives on it the two legs and the copying
// between them.
//
// # Two legs
//
// The host side is plaintext, between a local program's kernel socket and us. The
// wire side is between us and the remote host, and is encrypted when both ends want
// it (RFC 8547, RFC 8548). Both run over the same link:
//
//	outbound  program -> captured destination | S -> destination
//	inbound   remote  -> S                    | remote's own address -> H
//
// S is our address on the link, H the kernel's. A SYN to S is inbound, any other
// is outbound.
//
// # The far end speaks first
//
// No SYN is answered before the other leg stands: an outbound program's SYN is held
// until the remote has answered ours, and is then answered, refused with RST, told
// "unreachable" by ICMP, or left in silence, as the remote did. Inbound, a SYN is
// answered if a local service listens, and the service is dialled, from the remote's
// own address, once the remote has proved that address.
//
// # What ends how
//
// FIN becomes FIN in the same direction (half-close), a reset becomes a reset, and
// whatever is wrong with encrypted data (a failed record, a stream cut short) becomes
// a reset of both legs: a program never takes it for end-of-file.
//
//	s, err := stack.New(stack.Options{Link: link, Stack4: s4, Host4: h4, ...})
//	...
//	s.Reset(ctx) // RST both legs of everything
//	s.Close()
package stack
