package stack

import (
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// A conn is one connection: its two legs, the pumps between them, its line in the table.
type conn struct {
	s             *Stack
	id            uint64
	dir           Direction
	local, remote netip.AddrPort
	rule          Rule

	wire, host leg
	up, down   pump // host to wire, wire to host
	running    atomic.Int32
	shunned    bool        // no ENO is offered: it does not reach remote, as far as is remembered
	broken     atomic.Bool // a leg ended by anything but FIN
	aborting   atomic.Bool // the pumps are to end at once

	state      atomic.Uint32 // of State
	sent, recv atomic.Uint64

	mu  sync.Mutex
	enc encryption // guarded by mu
	neg *ENO       // what negotiated, nil if nothing did; guarded by mu
	err error      // first cause of broken; guarded by mu

	// service is what an inbound connection's service was dialled at, H and its port; zero
	// before that and outbound. Guarded by mu.
	service netip.AddrPort
}

// encryption is what was negotiated.
type encryption struct {
	encrypted bool
	reason    tcpcrypt.Reason
	role      tcpcrypt.Role
	tep       tcpcrypt.TEP
	aead      tcpcrypt.AEAD
	sessionID []byte
	resumed   bool
	peerAware bool // the peer's application-aware bit
}

const (
	reasonOpening  = tcpcrypt.ReasonOpening
	reasonFallback = tcpcrypt.ReasonFallback
	reasonPolicy   = tcpcrypt.ReasonPolicy
	reasonLimit    = tcpcrypt.ReasonLimit
)

func newConn(s *Stack, dir Direction, local, remote netip.AddrPort, rule Rule) *conn {
	c := &conn{s: s, dir: dir, local: local, remote: remote, rule: rule}
	c.enc.reason = reasonOpening
	c.wire.in, c.wire.out = &c.down, &c.up
	c.host.in, c.host.out = &c.up, &c.down
	c.up.c, c.up.src, c.up.dst, c.up.count = c, &c.host, &c.wire, &c.sent
	c.down.c, c.down.src, c.down.dst, c.down.count = c, &c.wire, &c.host, &c.recv
	return c
}

// decidePlain records why c goes in clear.
func (c *conn) decidePlain(r tcpcrypt.Reason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enc = encryption{reason: r}
}

func (c *conn) decide(e encryption, neg *ENO) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enc, c.neg = e, neg
}

// known is encryption, with what the key exchange has brought meanwhile: a short
// connection may be over before its handler has looked.
func (c *conn) known() encryption {
	c.mu.Lock()
	e, neg := c.enc, c.neg
	c.mu.Unlock()
	if neg != nil && e.encrypted && e.sessionID == nil {
		return c.settle(neg)
	}
	return e
}

func (c *conn) encryption() encryption {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.enc
}

// fail notes the first cause of c's end.
func (c *conn) fail(err tcpip.Error) { c.failWith(tcpipError(err)) }

// failWith is fail for errors that are not netstack's.
func (c *conn) failWith(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	c.broken.Store(true)
}

// cause is the first cause of c's end, nil if there is none yet.
func (c *conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *conn) snapshot() Conn {
	e := c.known()
	sent, received := c.generations()
	return Conn{
		ID: c.id, Direction: c.dir, Local: c.local, Remote: c.remote,
		State: State(c.state.Load()), Policy: c.rule.Policy, Label: c.rule.Label,
		Encrypted: e.encrypted, Reason: e.reason, Role: e.role, TEP: e.tep, AEAD: e.aead,
		SessionID: append([]byte(nil), e.sessionID...), Resumed: e.resumed,
		PeerApplicationAware: e.peerAware, GenerationSent: sent, GenerationReceived: received,
		BytesSent: c.sent.Load(), BytesReceived: c.recv.Load(),
	}
}

// is reports whether c goes by this tuple. The service of an inbound connection sees H as
// its own address, not what the remote dialled.
func (c *conn) is(local, remote netip.AddrPort) bool {
	if c.remote != remote {
		return false
	}
	if c.local == local {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.service.IsValid() && c.service == local
}

// rekey starts a rekeying. It reports false if c is not encrypted and open.
func (c *conn) rekey() bool {
	if State(c.state.Load()) != Open || c.known().sessionID == nil {
		return false
	}
	se, ok := tcp.AsSecure(c.wire.ep)
	return ok && se.Rekey() == nil
}

// generations returns how often the keys of each direction were replaced.
func (c *conn) generations() (sent, received uint64) {
	c.mu.Lock()
	neg := c.neg
	c.mu.Unlock()
	if neg != nil {
		if session := neg.TCPCryptSession(); session != nil {
			return session.Generations()
		}
	}
	return 0, 0
}

// start begins to relay. Both legs are established.
func (c *conn) start() {
	c.s.conns.open(c)
	c.running.Store(2)
	const mask = waiter.ReadableEvents | waiter.WritableEvents | waiter.EventErr | waiter.EventHUp | waiter.EventRdHUp
	for _, l := range []*leg{&c.wire, &c.host} {
		l.entry.Init(l, mask)
		l.queue.EventRegister(&l.entry)
	}
	// What happened before is found by looking.
	c.up.wake(wakeAny)
	c.down.wake(wakeAny)
}

// abort ends c at once, resetting both legs. Of one that is opening its handler sees
// to that, which hears of the stop.
func (c *conn) abort() {
	c.aborting.Store(true)
	c.fail(&tcpip.ErrConnectionAborted{})
	if State(c.state.Load()) == Open {
		c.up.wake(wakeAny)
		c.down.wake(wakeAny)
	}
}

// pumpDone is called by each pump as its last act; the second one ends c.
func (c *conn) pumpDone() {
	if c.running.Add(-1) > 0 {
		// A broken leg ends both directions: the other pump is to look.
		if c.broken.Load() {
			c.up.wake(wakeAny)
			c.down.wake(wakeAny)
		}
		return
	}
	c.finish()
}

// finish closes the legs: with FIN if both directions ended with FIN, else with RST.
func (c *conn) finish() {
	broken := c.broken.Load()
	for _, l := range []*leg{&c.wire, &c.host} {
		l.queue.EventUnregister(&l.entry)
		l.close(broken)
	}
	if broken {
		c.s.counters.aborted.Add(1)
	}
	c.s.conns.end(c)
	c.s.log.Debug("closed", slog.Uint64("conn", c.id), slog.Any("err", c.cause()))
}

// close closes the leg's endpoint if there is one, with RST if reset.
func (l *leg) close(reset bool) {
	if l.ep == nil {
		return
	}
	if reset {
		l.ep.Abort()
	}
	l.ep.Close()
}
