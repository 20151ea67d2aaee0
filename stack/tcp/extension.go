package tcp

import (
	"context"
	"io"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A Conn names a connection to an Extension. An IPv4 address is never mapped.
type Conn struct {
	Local, Remote netip.AddrPort
}

// An Extension is asked about each connection of a stack. Its methods run under
// locks of TCP: they return at once and call nothing of this package.
type Extension interface {
	// Active returns the Negotiator for a connection that we open, nil for plain
	// TCP. It is asked when the first SYN is built, and not at all for endpoints
	// that were given a Negotiator, see SecureEndpoint.SetNegotiator.
	Active(c Conn) Negotiator

	// Passive does the same for a SYN received by a listener or a Forwarder.
	// synOptions is the raw option area of that SYN, borrowed for the call. A SYN
	// that is answered with a cookie has no negotiation, and Passive is not asked.
	Passive(c Conn, synOptions []byte) Negotiator

	// Cookie is asked about a connection that a SYN cookie made: it is established,
	// and plain, since nobody remembers what its SYN offered. An error resets it
	// before any data, and it is not accepted.
	Cookie(c Conn) error
}

// A Negotiator negotiates for one connection. TCP calls it under the endpoint's
// lock: it returns at once and calls nothing of this package. Option areas that it
// is given are raw (kind, length, contents, padding) and borrowed for the call.
type Negotiator interface {
	// SYNOption returns the option for our SYN or SYN-ACK, kind and length
	// included, without padding, at most space bytes long; nil for none. Once it has
	// returned nil it is taken as withdrawn, and no SYN carries it again. TCP sends
	// the bytes of the first call again each time, whatever later calls return.
	//
	// unanswered counts earlier SYNs that had time to be answered and were not. It
	// is 0 for a SYN-ACK.
	SYNOption(space, unanswered int) []byte

	// ReceiveSYN is told of the peer's SYN, once: of a passive open before anything
	// else, or of a simultaneous open.
	ReceiveSYN(options []byte)

	// ReceiveACK is told of the first segment with ACK that TCP accepted, the
	// SYN-ACK (syn is true) or the handshake's last ACK, and decides: a Session; or
	// nil, plain for ever; or an error, which resets the connection before any data.
	ReceiveACK(options []byte, syn bool) (Session, error)

	// Misled is asked once ReceiveACK has returned nil, nil: how the peer's stream
	// begins if the peer, unlike us, takes the connection as encrypted; nil if it
	// cannot. A stream that begins so is given to no reader: the connection is reset
	// with ErrMisled.
	Misled() []byte

	// NonSYNOption returns what to put into non-SYN segments as long as they carry
	// the option, kind and length included, at most 4 bytes.
	NonSYNOption() []byte

	// Abandon is called if the connection ends before ReceiveACK.
	Abandon()
}

// A Session is an encrypted connection of which TCP knows. Either Close is called,
// or Handshake once and then Close.
type Session interface {
	// Handshake exchanges keys over the raw stream and returns the Codec for what
	// follows. It runs in a goroutine of its own. ctx ends when the connection does
	// and at a deadline; reads and writes then fail. An error resets the connection.
	Handshake(ctx context.Context, s Stream) (Codec, error)

	// Close wipes the session's secrets. Nothing is sealed or opened afterwards.
	Close()
}

// A Stream is the raw byte stream under a Session's handshake. The last byte of
// each Write is in a segment with PSH, which holds nothing of later Writes.
type Stream interface {
	io.ReadWriter

	// Unread gives back bytes that were read too much: they become the first of the
	// record layer's. p is copied.
	Unread(p []byte)
}

// A Codec seals and opens records. Seal and Open are called each from one
// goroutine at a time, and may run at once; Owed, Rekey and Generations may be called
// at any time.
type Codec interface {
	// HeaderLen is the number of bytes that RecordLen needs, at most 8.
	HeaderLen() int

	// RecordLen returns the length in bytes of the whole record, header included,
	// that starts with header.
	RecordLen(header []byte) (int, error)

	// Open opens one whole record in place. data aliases it; last says that the
	// peer's stream ends with this record.
	Open(record []byte) (data []byte, last bool, err error)

	// EndOfStream is asked when the peer's TCP stream has ended between two records,
	// none of which was the last: is that an error? Of a stream that ends inside a
	// record it is not asked.
	EndOfStream() error

	// Overhead is how many bytes longer than its data a record is.
	Overhead() int

	// MaxData is the largest number of bytes of data in one record.
	MaxData() int

	// Seal appends a record with data, which may be empty, to dst. last ends our
	// stream. It allocates nothing if dst has room. The offset of the record in our
	// TCP stream is the sum of the lengths of all that was written and sealed before.
	Seal(dst, data []byte, last bool) ([]byte, error)

	// Owed is the number of empty records that the peer must be sent in answer to
	// what Open opened. Each call of Seal pays for one.
	Owed() int

	// Rekey makes the next record that may be it the first under new keys. A record
	// with data always may; one without if sent is not above received.
	Rekey()

	// Generations counts the new keys of what was sealed and of what was opened. The
	// peer answers each of ours, so received then reaches sent.
	Generations() (sent, received uint64)
}

// Options configures the TCP of a stack. The zero value is upstream's TCP.
type Options struct {
	// Extension is asked about each connection; nil for none, and then endpoints are
	// upstream's.
	Extension Extension

	// MTU caps the path MTU of a new connection, in bytes with the IP header: the
	// MSS that is advertised and the payload that is sent. It is asked under locks of
	// TCP and returns at once; 0 means that the NIC's MTU is all there is. nil is 0
	// for every connection.
	MTU func(local, remote netip.Addr) uint32

	// HandshakeTimeout bounds Session.Handshake; 0 means DefaultHandshakeTimeout.
	HandshakeTimeout time.Duration
}

// DefaultHandshakeTimeout is how long a key exchange may take. A peer that sends
// nothing more keeps a connection for no longer.
const DefaultHandshakeTimeout = 15 * time.Second

// NewProtocolWithExtension returns TCP with Reno congestion control whose
// connections ext may encrypt.
func NewProtocolWithExtension(ext Extension) stack.TransportProtocolFactory {
	return NewProtocolWithOptions(Options{Extension: ext})
}

// NewProtocolWithOptions returns TCP with Reno congestion control and options.
func NewProtocolWithOptions(o Options) stack.TransportProtocolFactory {
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = DefaultHandshakeTimeout
	}
	return func(s *stack.Stack) stack.TransportProtocol {
		p := NewProtocol(s).(*protocol)
		if o.Extension != nil || o.MTU != nil {
			p.ext = &protocolExtension{Options: o, asked: make(map[*segment]Negotiator)}
		}
		return p
	}
}

// protocolExtension is what the protocol knows of its extension. Without one the
// protocol has none.
type protocolExtension struct {
	Options

	mu sync.Mutex
	// asked holds, by its SYN, the Negotiator of a Forwarder's connection between
	// the question and the making of the endpoint. Guarded by mu.
	asked map[*segment]Negotiator
}

// passive asks the extension about a received SYN.
func (p *protocolExtension) passive(s *segment) Negotiator {
	if p.Extension == nil {
		return nil
	}
	return p.Extension.Passive(connOf(s.id), s.rawOptions())
}

// ask asks about the SYN of a Forwarder's request and keeps the answer for
// createConnectingEndpoint.
func (p *protocolExtension) ask(s *segment) Negotiator {
	n := p.passive(s)
	p.mu.Lock()
	p.asked[s] = n
	p.mu.Unlock()
	return n
}

// answer returns what ask kept, once.
func (p *protocolExtension) answer(s *segment) (n Negotiator, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, ok = p.asked[s]
	delete(p.asked, s)
	return n, ok
}

func connOf(id stack.TransportEndpointID) Conn {
	return Conn{
		Local:  netip.AddrPortFrom(addrOf(id.LocalAddress), id.LocalPort),
		Remote: netip.AddrPortFrom(addrOf(id.RemoteAddress), id.RemotePort),
	}
}

func addrOf(a tcpip.Address) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return addr.Unmap()
}
