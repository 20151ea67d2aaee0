// Package socket is Dial and Listen over a TCP/IP stack of one's own that encrypts with
// tcpcrypt (RFC 8547, RFC 8548): ordinary net.Conn and net.Listener, no certificates, and
// ordinary TCP with peers that do not encrypt, unless the policy says otherwise.
package socket
