// Package tcp is gVisor's TCP with room for an extension that encrypts.
//
// Half of the package is generated: `go generate ./stack/patch` copies
// gvisor.dev/gvisor/pkg/tcpip/transport/tcp at the version that go.mod pins into
// files named up_*.go and renames the few functions that the committed files wrap
// (stack/patch/touchpoints.go lists them all). Without an extension the package is
// upstream, with upstream's API and behaviour.
//
// # The extension
//
// Four small interfaces cut the protocol from TCP, and no type of gVisor is in
// them. An [Extension] belongs to a stack and is asked once for each connection. A
// [Negotiator] belongs to a connection and speaks in TCP options until the first
// acknowledgement, where it decides: plain for ever, or a [Session]. A Session does
// its key exchange over the connection's raw bytes and returns a [Codec], which
// seals and opens records.
//
//	p := tcp.NewProtocolWithExtension(ext)
//	s := stack.New(stack.Options{TransportProtocols: []stack.TransportProtocolFactory{p}})
//
// # The endpoint
//
// Endpoints of such a stack are [SecureEndpoint]: a tcpip.Endpoint around upstream's,
// whose Read and Write carry plaintext. Sealing runs in the writer's goroutine and
// opening in the reader's, outside the lock of TCP. A record is sealed once and its
// ciphertext kept until acknowledged, so what is sent again is the same bytes.
//
// A connection whose stream does not end as the record protocol says, or whose
// record does not open, is reset, and reads and writes return an error that is never
// the end-of-file one ([SecureEndpoint.Err] has the cause).
package tcp
