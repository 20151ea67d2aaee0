package wirepeer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

// A Config is one side of a key exchange. The zero value offers everything and breaks
// nothing.
type Config struct {
	TEPs    []TEP    // offered, in the order of the wire; a server takes the first that the client has; nil: all
	Ciphers []Cipher // offered, or a server's by preference; nil: all

	InitTail []byte                  // ignored bytes at the end of our Init
	EditInit func(b []byte) []byte   // makes what is sent of our Init; the keys are made of the result
	SendInit func(c *Conn, b []byte) // how it is sent; nil: Conn.Write
	Choose   func([]Cipher) Cipher   // a server's choice of cipher; nil: by Ciphers
	Public   []byte                  // our public key as on the wire; the session is dead if it is not ours

	Resume *Chain // offered, or accepted if the peer offers it
	Nonce  []byte // behind our half of the identifier; nil: 8 random bytes
}

func (c *Config) fill() {
	if c.TEPs == nil {
		c.TEPs = TEPs
	}
	if c.Ciphers == nil {
		c.Ciphers = Ciphers
	}
}

// Offer is the option for an active opener's SYN. What it offers to resume stands last.
func (c Config) Offer() []byte {
	c.fill()
	var subs []byte
	for _, t := range c.TEPs {
		if c.Resume == nil || c.Resume.TEP != t {
			subs = append(subs, byte(t))
		}
	}
	if c.Resume != nil {
		subs = append(subs, c.Resume.Sub(c.nonce())...)
	}
	return BuildENO(subs...)
}

// Answer is the option for a passive opener's SYN-ACK, for Script.Answer: b = 1 and one
// TEP, or nothing if the SYN has no ENO or no TEP of ours. What the peer offers to
// resume is accepted if it is Resume.
func (c Config) Answer(syn *Segment) []byte {
	c.fill()
	subs, err := ParseENO(syn.ENO())
	if err != nil {
		return nil
	}
	if resumption := c.answerResumption(subs); resumption != nil {
		return resumption
	}
	for _, t := range c.TEPs {
		if _, ok := find(subs, byte(t)); ok {
			return BuildENO(passiveBit, byte(t))
		}
	}
	return nil
}

// A Session is an encrypted connection, seen from one end. One goroutine may send while
// another receives.
type Session struct {
	Conn    *Conn
	ID      [33]byte // RFC 8548, section 3.4
	Role    Role
	TEP     TEP
	Cipher  Cipher
	Offered []Cipher // by the client
	Secret  []byte   // ss[i]

	Resumed  bool
	Original Role // ours in the session that this one resumes; Role if it is fresh
	Index    int  // i: 0 if it is fresh

	// NoAnswers leaves a rekey of the peer's unanswered by ReadData.
	NoAnswers bool

	in       *direction
	rcvedGen int
	pending  []byte // read by ReadData beyond what was asked for

	mu      sync.Mutex // guards what follows
	out     *direction
	sentGen int
	finSent bool
}

// Agreement is what the connection's two SYNs have led to, judged by what was sent and
// received: an error if ENO failed, and the connection goes on in clear.
func (c *Conn) Agreement() (*Agreement, error) { return c.agreement(nil) }

func (c *Conn) agreement(resume *Chain) (*Agreement, error) {
	var id *Resumable
	if resume != nil {
		id = resume.Identifier()
	}
	own, syn, ack := c.options()
	if syn == nil {
		return nil, errNoOption
	}
	ag, err := Agree(own, syn.ENO(), id, false, false)
	if err != nil {
		return nil, err
	}
	if ack == nil || !ack.HasENO() {
		return nil, errNotMarked
	}
	return ag, nil
}

// Handshake does the key exchange in the role that ENO has given us, or resumes
// cfg.Resume if that is what came of it.
func Handshake(ctx context.Context, c *Conn, cfg Config) (*Session, error) {
	cfg.fill()
	ag, err := c.agreement(cfg.Resume)
	if err != nil {
		return nil, fmt.Errorf("not encrypted: %w", err)
	}
	s := &Session{Conn: c, TEP: TEP(ag.TEP), Role: B}
	if ag.FirstIsA { // Agreement puts our own option first
		s.Role = A
	}
	s.Original = s.Role
	if ag.Resumed {
		return s, s.resume(cfg.Resume, ag)
	}
	return s, s.exchange(ctx, &cfg, ag)
}

func (s *Session) exchange(ctx context.Context, cfg *Config, ag *Agreement) error {
	pair, err := newKeyPair(s.TEP, nil)
	if err != nil {
		return err
	}
	public := pair.public
	if cfg.Public != nil {
		public = cfg.Public
	}
	nonce := make([]byte, initNonceLen)
	_, _ = rand.Read(nonce) // never fails

	var own []byte
	var theirs *initMessage
	var ss []byte
	if s.Role == A {
		s.Offered = cfg.Ciphers
		own = s.send(cfg, BuildInit1(cfg.Ciphers, nonce, public, cfg.InitTail))
		if theirs, err = s.receiveInit(ctx, init2Magic); err != nil {
			return err
		}
		s.Cipher = theirs.ciphers[0]
		if !slices.Contains(cfg.Ciphers, s.Cipher) {
			return errNotOffered
		}
	} else {
		if theirs, err = s.receiveInit(ctx, init1Magic); err != nil {
			return err
		}
		s.Offered = theirs.ciphers
		if cfg.Choose != nil {
			s.Cipher = cfg.Choose(theirs.ciphers)
		} else if s.Cipher, err = choose(cfg.Ciphers, theirs.ciphers); err != nil {
			return err
		}
		own = s.send(cfg, BuildInit2(s.Cipher, nonce, public, cfg.InitTail))
	}
	es, err := pair.shared(theirs.public)
	if err != nil {
		return err
	}
	if s.Role == A {
		ss = firstSecret(nonce, ag.Transcript, own, theirs.whole, es)
	} else {
		ss = firstSecret(theirs.nonce, ag.Transcript, theirs.whole, own, es)
	}
	s.Secret, s.ID = ss, sessionID(ag.TEPByte, ss, nil)
	mk := masterKey(ss, nil)
	other := A
	if s.Role == A {
		other = B
	}
	if s.out, err = newDirection(mk, s.Role, s.Cipher, uint64(len(own))); err != nil {
		return err
	}
	s.in, err = newDirection(mk, other, s.Cipher, uint64(len(theirs.whole)))
	return err
}

func (s *Session) send(cfg *Config, message []byte) []byte {
	if cfg.EditInit != nil {
		message = cfg.EditInit(message)
	}
	if cfg.SendInit != nil {
		cfg.SendInit(s.Conn, message)
	} else {
		s.Conn.Write(message)
	}
	return message
}

func (s *Session) receiveInit(ctx context.Context, magic []byte) (*initMessage, error) {
	b, err := s.Conn.Read(ctx, initHeaderLen)
	if err != nil {
		return nil, fmt.Errorf("read Init: %w", err)
	}
	m, err := parseInit(b, magic, s.TEP)
	if !errors.Is(err, errIncomplete) {
		return m, err
	}
	rest, err := s.Conn.Read(ctx, int(uint32(b[4])<<24|uint32(b[5])<<16|uint32(b[6])<<8|uint32(b[7]))-initHeaderLen)
	if err != nil {
		return nil, fmt.Errorf("read Init: %w", err)
	}
	return parseInit(slices.Concat(b, rest), magic, s.TEP)
}

// Seal makes the bytes of the next frame. They have to be written, in whatever shape.
func (s *Session) Seal(f Frame) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sealLocked(f)
}

func (s *Session) sealLocked(f Frame) []byte {
	frame, err := s.out.seal(f)
	if err != nil {
		panic(err) // too long: the test is wrong
	}
	if f.Rekey {
		s.sentGen++
	}
	return frame
}

// Send seals and writes a frame; with f.FIN TCP's FIN goes with it.
func (s *Session) Send(f Frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.sealLocked(f)
	if f.FIN {
		s.finSent = true
		s.Conn.WriteFIN(b)
		return
	}
	s.Conn.Write(b)
}

// SendData sends data in frames of at most n bytes.
func (s *Session) SendData(data []byte, n int) {
	for part := range slices.Chunk(data, n) {
		s.Send(Frame{Data: part})
	}
}

// Receive reads and opens the next frame. io.EOF means FIN at a frame's border,
// io.ErrUnexpectedEOF within one: whether FINp had come is for the caller to know.
func (s *Session) Receive(ctx context.Context) (Frame, error) {
	header, err := s.Conn.Read(ctx, frameHeaderLen)
	if err != nil {
		return Frame{}, err
	}
	n, err := clen(header)
	if err != nil {
		return Frame{}, err
	}
	body, err := s.Conn.Read(ctx, n)
	if err != nil {
		return Frame{}, err
	}
	f, err := s.in.open(slices.Concat(header, body))
	if err == nil && f.Rekey {
		s.rcvedGen++
	}
	return f, err
}

// Generations returns how often the keys have been changed in either direction.
func (s *Session) Generations() (sent, received int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sentGen, s.rcvedGen
}

// owed reports whether a rekey of the peer's is to be answered now.
func (s *Session) owed() bool {
	sent, received := s.Generations()
	return received > sent && !s.NoAnswers && !s.ended()
}

func (s *Session) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.finSent
}

// ErrNoFINp means that the stream ended without a frame that said so.
var ErrNoFINp = errors.New("FIN without FINp: truncated")

// ReadData reads frames until it has n application bytes or, with n < 0, the FINp and
// the FIN; rekeys are answered on the way. io.ErrUnexpectedEOF: FINp came too early.
func (s *Session) ReadData(ctx context.Context, n int) ([]byte, error) {
	data := s.pending
	s.pending = nil
	for n < 0 || len(data) < n {
		f, err := s.Receive(ctx)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return data, ErrNoFINp
		}
		if err != nil {
			return data, err
		}
		data = append(data, f.Data...)
		if s.owed() {
			s.Send(Frame{Rekey: true})
		}
		if f.FIN {
			if _, err := s.Conn.Read(ctx, 1); !errors.Is(err, io.EOF) {
				return data, fmt.Errorf("behind FINp: %w", err)
			}
			break
		}
	}
	if n >= 0 {
		s.pending = data[min(n, len(data)):]
		data = data[:min(n, len(data)):min(n, len(data))]
		if len(data) < n {
			return data, io.ErrUnexpectedEOF
		}
	}
	return data, nil
}
