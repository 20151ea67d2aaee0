package tcp_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"sync/atomic"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
)

// The toy protocol stands in for a real one. Its SYN option is kind 253 with a letter,
// repeated to the length wanted; its non-SYN option is `fd 02`. Each side sends eight
// bytes, the active one first, and both then XOR with what they learnt. A record is
// length(2) flags(1) offset-checksum(4) data.
const (
	toyKind     = 253
	toyHello    = 8
	toyHeader   = 3
	toySum      = 4
	toyOverhead = toyHeader + toySum

	toyLast  = 1
	toyRekey = 2
)

var (
	errToyRefused = errors.New("toy: the peer does not encrypt")
	errToySum     = errors.New("toy: bad checksum")
	errToyAfter   = errors.New("toy: record after the last")
)

// toy is an Extension. The zero value encrypts with whoever does.
type toy struct {
	Require   bool
	Off       bool // plain, always
	Length    int  // of the SYN option; 0 means 4
	Fallback  int  // unanswered SYNs before the option is withdrawn; 0 never
	HoldHello bool // the handshake sends nothing and waits
	OverRead  bool // the handshake reads more than it needs, and gives it back

	mu   sync.Mutex
	negs []*toyNeg
}

func (t *toy) Active(c tcp.Conn) tcp.Negotiator { return t.neg(c, true) }

func (t *toy) Passive(c tcp.Conn, _ []byte) tcp.Negotiator { return t.neg(c, false) }

func (t *toy) Cookie(tcp.Conn) error {
	if t.Require {
		return errToyRefused
	}
	return nil
}

func (t *toy) neg(c tcp.Conn, active bool) tcp.Negotiator {
	if t.Off {
		return nil
	}
	n := &toyNeg{t: t, conn: c, active: active}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.negs = append(t.negs, n)
	return n
}

// last returns the Negotiator made last.
func (t *toy) last() *toyNeg {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.negs) == 0 {
		return nil
	}
	return t.negs[len(t.negs)-1]
}

// toyNeg is guarded by the endpoint's lock; tests read it when the connection is
// decided.
type toyNeg struct {
	t        *toy
	conn     tcp.Conn
	active   bool
	disabled bool
	heardSYN bool

	decided, abandoned, closed atomic.Bool
}

func toyOption(options []byte) bool {
	for i := 0; i < len(options); {
		switch {
		case options[i] == 0:
			return false
		case options[i] == 1:
			i++
		case i+1 >= len(options) || options[i+1] < 2:
			return false
		case options[i] == toyKind:
			return true
		default:
			i += int(options[i+1])
		}
	}
	return false
}

func (n *toyNeg) SYNOption(space, unanswered int) []byte {
	length := n.t.Length
	if length == 0 {
		length = 4
	}
	if n.disabled || space < length || n.t.Fallback > 0 && unanswered >= n.t.Fallback {
		n.disabled = true
		return nil
	}
	b := make([]byte, length)
	b[0], b[1] = toyKind, byte(length)
	for i := 2; i < length; i++ {
		b[i] = 'x'
	}
	return b
}

func (n *toyNeg) ReceiveSYN(options []byte) {
	n.heardSYN = true
	if !toyOption(options) {
		n.disabled = true
	}
}

func (n *toyNeg) ReceiveACK(options []byte, _ bool) (tcp.Session, error) {
	n.decided.Store(true)
	if n.disabled || !toyOption(options) {
		if n.t.Require {
			return nil, errToyRefused
		}
		return nil, nil
	}
	return &toySession{neg: n}, nil
}

// Misled is the hello, of an opener whose ACK has lost its option.
func (n *toyNeg) Misled() []byte {
	if n.active || n.disabled {
		return nil
	}
	return []byte("toyhello")
}

func (*toyNeg) NonSYNOption() []byte { return []byte{toyKind, 2} }

func (n *toyNeg) Abandon() { n.abandoned.Store(true) }

type toySession struct{ neg *toyNeg }

func (s *toySession) Handshake(_ context.Context, raw tcp.Stream) (tcp.Codec, error) {
	hello := []byte("toyhello")
	first := s.neg.active && (!s.neg.heardSYN || s.neg.conn.Local.Port() < s.neg.conn.Remote.Port())
	if first && !s.neg.t.HoldHello {
		if _, err := raw.Write(hello); err != nil {
			return nil, err
		}
	}
	size := toyHello
	if s.neg.t.OverRead {
		size = 1 << 10
	}
	buf := make([]byte, size)
	n, err := io.ReadAtLeast(raw, buf, toyHello)
	if err != nil {
		return nil, err
	}
	raw.Unread(buf[toyHello:n])
	if string(buf[:toyHello]) != string(hello) {
		return nil, fmt.Errorf("toy: hello is %q", buf[:toyHello])
	}
	if !first && !s.neg.t.HoldHello {
		if _, err := raw.Write(hello); err != nil {
			return nil, err
		}
	}
	return &toyCodec{neg: s.neg, sealAt: toyHello, openAt: toyHello}, nil
}

func (s *toySession) Close() { s.neg.closed.Store(true) }

// toyCodec checks offsets: a record that is sealed twice, lost or reordered does not
// open.
type toyCodec struct {
	neg            *toyNeg
	sealAt, openAt uint32
	done           bool
	rekey          atomic.Bool // the next record asks for an answer
	local, remote  atomic.Uint64
	owedHook       atomic.Pointer[func() int]
	lenient        atomic.Bool // a stream may end without a last record
	flood          flood
}

const toyKey = 0x5a

func (*toyCodec) Overhead() int { return toyOverhead }
func (*toyCodec) MaxData() int  { return 65535 - toySum }

// Owed asks owedHook, if there is one, for what it says.
func (c *toyCodec) Owed() int {
	if hook := c.owedHook.Load(); hook != nil {
		return (*hook)()
	}
	if local, remote := c.local.Load(), c.remote.Load(); remote > local {
		return int(remote - local)
	}
	return 0
}

func (c *toyCodec) Rekey() { c.rekey.Store(true) }

func (c *toyCodec) Generations() (sent, received uint64) { return c.local.Load(), c.remote.Load() }

// HeaderLen is 0 in a flood, and then so is the record.
func (c *toyCodec) HeaderLen() int {
	if c.flood.on.Load() {
		return 0
	}
	return toyHeader
}

func (*toyCodec) RecordLen(h []byte) (int, error) {
	if len(h) == 0 {
		return 0, nil
	}
	n := int(binary.BigEndian.Uint16(h))
	if n < toySum {
		return 0, errToySum
	}
	return toyHeader + n, nil
}

func toyCheck(at uint32, header, data []byte) uint32 {
	sum := crc32.Update(at, crc32.IEEETable, header)
	return crc32.Update(sum, crc32.IEEETable, data)
}

func (c *toyCodec) Seal(dst, data []byte, last bool) ([]byte, error) {
	start := len(dst)
	var flags byte
	if last {
		flags |= toyLast
	}
	ahead := c.local.Load() > c.remote.Load()
	if c.Owed() > 0 || c.rekey.Load() && (!ahead || len(data) > 0) {
		c.rekey.Store(false)
		c.local.Add(1)
		flags |= toyRekey
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(toySum+len(data)))
	dst = append(dst, flags, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(dst[start+toyHeader:], toyCheck(c.sealAt, dst[start:start+toyHeader], data))
	at := len(dst)
	dst = append(dst, data...)
	for i := at; i < len(dst); i++ {
		dst[i] ^= toyKey
	}
	c.sealAt += uint32(len(dst) - start)
	return dst, nil
}

func (c *toyCodec) Open(record []byte) ([]byte, bool, error) {
	if len(record) == 0 {
		return nil, false, c.flood.open()
	}
	if c.done {
		return nil, false, errToyAfter
	}
	data := record[toyOverhead:]
	for i := range data {
		data[i] ^= toyKey
	}
	if binary.BigEndian.Uint32(record[toyHeader:]) != toyCheck(c.openAt, record[:toyHeader], data) {
		return nil, false, errToySum
	}
	c.openAt += uint32(len(record))
	if record[2]&toyRekey != 0 {
		c.remote.Add(1)
	}
	c.done = record[2]&toyLast != 0
	return data, c.done, nil
}

func (c *toyCodec) EndOfStream() error {
	if c.lenient.Load() {
		return nil
	}
	return errors.New("toy: no last record")
}
