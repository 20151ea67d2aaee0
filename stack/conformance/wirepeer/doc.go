// Package wirepeer is a second implementation of TCP-ENO (RFC 8547) and tcpcrypt
// (RFC 8548), for tests: a scripted TCP/IP host that speaks the protocol from the
// other end of the wire and breaks it where a test wants it broken. It shares no
// code with the product: no package of it is imported here.
//
// # Layers
//
//	Session   Init1, Init2, key schedule, frames       session.go init.go schedule.go frame.go resume.go
//	Conn      one TCP connection and its Script        conn.go receive.go script.go
//	Host      all addresses routed to one link         host.go
//	Link      a TUN device, or two joined in memory    link.go tun_linux.go
//
// A [Script] holds what the TCP of one connection does differently: the exact ENO
// bytes, which segments carry the option, how the stream is cut into segments, which
// of its own segments are lost, doubled or changed. A [Config] holds the same for the
// key exchange, and what it resumes: a [Chain], kept by the script. Whatever neither foresees is done by hand: [Session.Seal] returns the
// bytes of a frame, and [Conn.Write] and [Conn.Inject] send any bytes and any segment.
//
//	host := wirepeer.NewHost(tun)
//	conn, err := host.Dial(ctx, local, remote, wirepeer.Script{ENO: cfg.Offer(), SegmentSize: 1})
//	session, err := wirepeer.Handshake(ctx, conn, cfg)
//	session.Send(wirepeer.Frame{Data: []byte("hello")})
//
// The kernel must not own the addresses, or it answers as well: route a prefix to the
// TUN device and use addresses of it.
//
// The TCP is a plain one: go-back-N retransmission after a fixed time, no congestion
// control, no urgent data. Secrets are not wiped; this is no library for anything but tests.
package wirepeer
