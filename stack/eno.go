package stack

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// synsWithENO is how many SYNs carry ENO under an opportunistic policy before one goes
// without it: some middleboxes drop SYNs with options that they do not know.
const synsWithENO = 2

// initChunk is how much of the peer's stream a key exchange reads at a time, in bytes:
// enough for any Init but an Init1 that offers hundreds of AEADs.
const initChunk = 512

// errPlain means that the policy is require and the connection would be in clear.
var errPlain = errors.New("policy requires encryption")

// ENO negotiates for one connection: it is a tcpcrypt.Negotiation as TCP's extension
// wants it. All methods may be called from several goroutines at once.
type ENO struct {
	require bool

	mu      sync.Mutex
	n       *tcpcrypt.Negotiation
	session *tcpcrypt.Session // after the key exchange; guarded by mu
}

// NewNegotiator returns what negotiates for a connection that we open (active) or that
// is opened to us. With require it never gives ENO up, and a connection that would be
// in clear is reset before any data.
func NewNegotiator(o tcpcrypt.Options, active, require bool) (*ENO, error) {
	n, err := tcpcrypt.NewNegotiation(o, active)
	if err != nil {
		return nil, err
	}
	return &ENO{require: require, n: n}, nil
}

// Outcome returns the decision; ok is false as long as there is none.
func (e *ENO) Outcome() (o tcpcrypt.Outcome, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n.Outcome()
}

// TCPCryptSession returns the session once keys are exchanged, nil before. It is TCP's:
// only what does not change may be asked of it, its ID say.
func (e *ENO) TCPCryptSession() *tcpcrypt.Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.session
}

// SYNOption implements tcp.Negotiator.
func (e *ENO) SYNOption(space, unanswered int) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	if unanswered >= synsWithENO && !e.require {
		e.n.Withdraw()
	}
	return e.n.SYNOption(space)
}

// ReceiveSYN implements tcp.Negotiator.
func (e *ENO) ReceiveSYN(options []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.n.ReceiveSYN(options)
}

// ReceiveACK implements tcp.Negotiator.
func (e *ENO) ReceiveACK(options []byte, syn bool) (tcp.Session, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.n.ReceiveACK(options, syn)
	o, _ := e.n.Outcome()
	switch {
	case o.Encrypted:
		return &enoSession{eno: e}, nil
	case e.require:
		return nil, fmt.Errorf("%w: %s", errPlain, o.Reason)
	default:
		return nil, nil
	}
}

// NonSYNOption implements tcp.Negotiator.
func (e *ENO) NonSYNOption() []byte { return tcpcrypt.NonSYNOption() }

// Abandon implements tcp.Negotiator. A session that was claimed for the connection is
// its claimer's to burn.
func (e *ENO) Abandon() {}

// An enoSession is an encrypted connection whose keys are not exchanged yet.
type enoSession struct {
	eno     *ENO
	session *tcpcrypt.Session // set by Handshake, which ends before Close
}

// Handshake implements tcp.Session: Init1 and Init2 (RFC 8548, section 3.3).
func (s *enoSession) Handshake(_ context.Context, stream tcp.Stream) (tcp.Codec, error) {
	kx, err := s.eno.keyExchange()
	if err != nil {
		return nil, err
	}
	defer kx.Wipe()
	if init1 := kx.Start(); init1 != nil {
		if _, err := stream.Write(init1); err != nil {
			return nil, err
		}
	}
	buf := make([]byte, initChunk)
	for {
		n, err := stream.Read(buf)
		used, out, done, feedErr := kx.Feed(buf[:n])
		if feedErr != nil {
			return nil, feedErr
		}
		if !done {
			if err != nil {
				return nil, err
			}
			continue
		}
		stream.Unread(buf[used:n])
		s.session = kx.Session()
		if out != nil {
			if _, err := stream.Write(out); err != nil {
				return nil, err
			}
		}
		s.eno.mu.Lock()
		s.eno.session = s.session
		s.eno.mu.Unlock()
		return newCodec(s.session), nil
	}
}

func (e *ENO) keyExchange() (*tcpcrypt.KeyExchange, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n.KeyExchange()
}

// Close implements tcp.Session.
func (s *enoSession) Close() {
	if s.session != nil {
		s.session.Wipe()
	}
}

// A codec is the two directions of a session as TCP's record layer wants them.
type codec struct {
	session *tcpcrypt.Session
	sealer  *tcpcrypt.Sealer
	opener  *tcpcrypt.Opener
}

func newCodec(s *tcpcrypt.Session) *codec { return &codec{s, s.Sealer(), s.Opener()} }

// HeaderLen implements tcp.Codec.
func (c *codec) HeaderLen() int { return tcpcrypt.FrameHeaderLen }

// RecordLen implements tcp.Codec.
func (c *codec) RecordLen(header []byte) (int, error) { return c.opener.FrameLen(header) }

// Open implements tcp.Codec. Urgent data is delivered in line.
func (c *codec) Open(record []byte) (data []byte, last bool, err error) {
	o, err := c.opener.Open(record)
	return o.Data, o.FIN, err
}

// EndOfStream implements tcp.Codec.
func (c *codec) EndOfStream() error { return c.opener.EndOfStream() }

// Overhead implements tcp.Codec.
func (c *codec) Overhead() int { return tcpcrypt.Overhead }

// MaxData implements tcp.Codec.
func (c *codec) MaxData() int { return tcpcrypt.MaxData }

// Seal implements tcp.Codec.
func (c *codec) Seal(dst, data []byte, last bool) ([]byte, error) {
	return c.sealer.Seal(dst, data, tcpcrypt.Flags{FIN: last})
}

// Owed implements tcp.Codec.
func (c *codec) Owed() int { return c.session.OwedRekeys() }
