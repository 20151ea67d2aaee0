package stack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
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

// NegotiatorOptions says how to negotiate for one connection.
type NegotiatorOptions struct {
	tcpcrypt.Options

	Active  bool // we open
	Require bool // never give ENO up; a connection that would be in clear is reset before any data
	Peer    netip.AddrPort

	// Cache has the sessions to resume and gets the new one; nil for neither. It
	// replaces the Offer of an active open and the Lookup of a passive one.
	Cache    *tcpcrypt.Cache
	NoResume bool // neither offer nor accept resumption
	NoKeep   bool // keep nothing of this connection for a later one
}

// ENO negotiates for one connection: it is a tcpcrypt.Negotiation as TCP's extension
// wants it. All methods may be called from several goroutines at once.
type ENO struct {
	o NegotiatorOptions // without Options

	mu      sync.Mutex
	n       *tcpcrypt.Negotiation
	session *tcpcrypt.Session // after the key exchange; guarded by mu
	chain   uint64            // guarded by mu
	silent  bool              // the key exchange ended before the peer's first byte; guarded by mu
}

// NewNegotiator returns what negotiates for a connection. It claims the session that an
// active open offers: one whose SYN is never built is to be abandoned, see Abandon.
func NewNegotiator(o NegotiatorOptions) (*ENO, error) {
	e := &ENO{o: o}
	e.o.Options = tcpcrypt.Options{}
	switch {
	case o.NoResume:
		if o.Offer != nil {
			o.Offer.Wipe()
		}
		o.Offer, o.Lookup = nil, nil
	case o.Cache != nil && o.Active:
		o.Offer = o.Cache.Claim(o.Peer, o.Options)
		if o.Offer != nil {
			e.chain = o.Offer.Chain()
		}
	case o.Cache != nil:
		// Called by n, so under mu.
		allowed := o.Options
		o.Lookup = func(t tcpcrypt.TEP, half [tcpcrypt.IdentifierHalfLen]byte) *tcpcrypt.Resumable {
			r := o.Cache.Lookup(t, half, allowed)
			if r != nil {
				e.chain = r.Chain()
			}
			return r
		}
	}
	n, err := tcpcrypt.NewNegotiation(o.Options, o.Active)
	if err != nil {
		if o.Offer != nil {
			o.Offer.Wipe()
		}
		return nil, err
	}
	e.n = n
	return e, nil
}

// Chain returns the number in the cache of the session that this connection resumed, or
// that its key exchange brought; 0 for none, or as long as it is not known.
func (e *ENO) Chain() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if o, _ := e.n.Outcome(); !o.Encrypted {
		return 0
	}
	return e.chain
}

// Flush makes the cache forget the session of Chain. It reports whether there was one.
func (e *ENO) Flush() bool {
	id := e.Chain()
	return id != 0 && e.o.Cache.Drop(id)
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
	if unanswered >= synsWithENO && !e.o.Require {
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
	e.settleChain(o)
	switch {
	case o.Encrypted:
		return &enoSession{eno: e}, nil
	case e.o.Require:
		return nil, fmt.Errorf("%w: %s", errPlain, o.Reason)
	default:
		return nil, nil
	}
}

// settleChain forgets a session that was offered and that the peer, who has answered,
// did not take up: it does not know it, and the next offer would be as vain. Who has not
// answered a SYN with ENO has said nothing. Called with mu held.
func (e *ENO) settleChain(o tcpcrypt.Outcome) {
	if o.Resumed {
		return
	}
	if e.n.Offered() && e.chain != 0 && o.Reason != tcpcrypt.ReasonFallback {
		e.o.Cache.Drop(e.chain)
	}
	e.chain = 0
}

// Misled implements tcp.Negotiator: who opened may have sent ENO in its first ACK, and
// then sends Init1 though the ACK came here without (RFC 8547, section 4.6).
func (e *ENO) Misled() []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	if o, _ := e.n.Outcome(); e.o.Active || o.Encrypted || o.Reason != tcpcrypt.ReasonStripped {
		return nil
	}
	return tcpcrypt.Init1Magic()
}

// NonSYNOption implements tcp.Negotiator.
func (e *ENO) NonSYNOption() []byte { return tcpcrypt.NonSYNOption() }

// Abandon implements tcp.Negotiator. A session that was claimed is erased, and never
// given back.
func (e *ENO) Abandon() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.n.Wipe()
}

// An enoSession is an encrypted connection whose keys are not there yet.
type enoSession struct {
	eno     *ENO
	session *tcpcrypt.Session // set by Handshake, which ends before Close
}

// Handshake implements tcp.Session: nothing of a resumption, which was complete with the
// options (RFC 8548, section 3.5), else Init1 and Init2 (section 3.3).
func (s *enoSession) Handshake(_ context.Context, stream tcp.Stream) (tcp.Codec, error) {
	var err error
	if o, _ := s.eno.Outcome(); o.Resumed {
		s.session, err = s.eno.resume()
	} else {
		err = s.exchange(stream)
	}
	if err != nil {
		return nil, err
	}
	s.eno.established(s.session)
	return newCodec(s.session), nil
}

// exchange is the key exchange.
func (s *enoSession) exchange(stream tcp.Stream) error {
	kx, err := s.eno.keyExchange()
	if err != nil {
		return err
	}
	defer kx.Wipe()
	if init1 := kx.Start(); init1 != nil {
		if _, err := stream.Write(init1); err != nil {
			return err
		}
	}
	buf := make([]byte, initChunk)
	for silent := true; ; {
		n, err := stream.Read(buf)
		silent = silent && n == 0
		used, out, done, feedErr := kx.Feed(buf[:n])
		if feedErr != nil {
			return feedErr
		}
		if !done {
			if err != nil {
				s.eno.mu.Lock()
				s.eno.silent = silent
				s.eno.mu.Unlock()
				return err
			}
			continue
		}
		stream.Unread(buf[used:n])
		s.session = kx.Session()
		if out != nil {
			_, err = stream.Write(out)
		} else {
			err = nil
		}
		return err
	}
}

func (e *ENO) keyExchange() (*tcpcrypt.KeyExchange, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n.KeyExchange()
}

func (e *ENO) resume() (*tcpcrypt.Session, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n.ResumedSession()
}

// established makes s known, and keeps what a later connection may resume.
func (e *ENO) established(s *tcpcrypt.Session) {
	next := s.TakeNext() // nil if the cache has it already
	e.mu.Lock()
	defer e.mu.Unlock()
	e.session = s
	if e.o.Cache != nil && !e.o.NoKeep {
		if !s.Resumed() {
			e.chain = e.o.Cache.Put(e.o.Peer, e.o.Active, next)
		}
		return
	}
	if next != nil {
		next.Wipe()
	}
	if e.chain != 0 { // it resumed
		e.o.Cache.Drop(e.chain)
		e.chain = 0
	}
}

// Close implements tcp.Session.
func (s *enoSession) Close() {
	s.eno.Abandon() // a resumption that did not come to its Handshake
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

// Rekey implements tcp.Codec.
func (c *codec) Rekey() { c.sealer.Rekey() }

// Generations implements tcp.Codec.
func (c *codec) Generations() (sent, received uint64) { return c.session.Generations() }
