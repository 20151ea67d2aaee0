package conformance

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
	"github.com/tcpcrypt/tcpcrypt/stack/socket"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	ourAddr  = netip.MustParseAddrPort("192.0.2.1:80")
	peerAddr = netip.MustParseAddrPort("192.0.2.2:80")
)

// patience bounds every wait for something that ought to happen soon.
const patience = 20 * time.Second

// A rig is the stack and the scripted host, joined.
type rig struct {
	t     *testing.T
	ctx   context.Context
	net   *socket.Net
	host  *wirepeer.Host
	cache *tcpcrypt.Cache
	port  uint16 // that we listened on last
}

func newRig(t *testing.T) *rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	near, far := wirepeer.Pipe()
	ch := channel.New(4096, 1500, "")
	r := &rig{t: t, ctx: ctx, host: wirepeer.NewHost(far), cache: tcpcrypt.NewCache(tcpcrypt.CacheOptions{})}
	var err error
	r.net, err = socket.New(socket.Options{Link: ch, Addrs: []netip.Addr{ourAddr.Addr()}, Cache: r.cache})
	if err != nil {
		t.Fatal(err)
	}
	pumping, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			p := ch.ReadContext(pumping)
			if p == nil {
				return
			}
			view := p.ToView()
			_, _ = near.Write(view.AsSlice())
			view.Release()
			p.DecRef()
		}
	})
	wg.Go(func() {
		b := make([]byte, 65535)
		for {
			n, err := near.Read(b)
			if err != nil {
				return
			}
			p := nstack.NewPacketBuffer(nstack.PacketBufferOptions{Payload: buffer.MakeWithData(slices.Clone(b[:n]))})
			ch.InjectInbound(header.IPv4ProtocolNumber, p)
			p.DecRef()
		}
	})
	t.Cleanup(func() {
		_ = near.Close()
		_ = r.net.Close()
		r.host.Close()
		stop()
		wg.Wait()
		r.cache.Close()
	})
	return r
}

// An end is a connection: what our application has, what the scripted host has.
type end struct {
	t    *testing.T
	ctx  context.Context
	app  *socket.Conn
	peer *wirepeer.Conn
	s    *wirepeer.Session // nil in clear
}

// dial opens from us to the peer, and returns once the peer has it. wait is Dial's result.
func (r *rig) dial(o socket.ConnOptions, script wirepeer.Script) (peer *wirepeer.Conn, wait func() (*socket.Conn, error)) {
	r.t.Helper()
	wait, l := r.start(o, script)
	defer l.Close()
	peer, err := l.Accept(r.ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	return peer, wait
}

// start is dial, but that nobody takes the connection at the peer.
func (r *rig) start(o socket.ConnOptions, script wirepeer.Script) (wait func() (*socket.Conn, error), l *wirepeer.Listener) {
	r.t.Helper()
	l, err := r.host.Listen(peerAddr, func() wirepeer.Script { return script })
	if err != nil {
		r.t.Fatal(err)
	}
	type result struct {
		c   *socket.Conn
		err error
	}
	done := make(chan result, 1)
	go func() {
		c, err := r.net.Dial(r.ctx, peerAddr, o)
		done <- result{c, err}
	}()
	return func() (*socket.Conn, error) {
		got := <-done
		if got.err == nil {
			_ = got.c.SetDeadline(time.Now().Add(patience))
		}
		return got.c, got.err
	}, l
}

// listen listens on a port that was not used yet.
func (r *rig) listen(o socket.ConnOptions) (*socket.Listener, netip.AddrPort) {
	r.t.Helper()
	r.port++
	at := netip.AddrPortFrom(ourAddr.Addr(), ourAddr.Port()+r.port)
	l, err := r.net.Listen(at, o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = l.Close() })
	_ = l.SetDeadline(time.Now().Add(patience))
	return l, at
}

// accept opens from the peer to us.
func (r *rig) accept(o socket.ConnOptions, script wirepeer.Script) *end {
	r.t.Helper()
	l, at := r.listen(o)
	e := &end{t: r.t, ctx: r.ctx}
	var err error
	if e.peer, err = r.host.Dial(r.ctx, netip.AddrPortFrom(peerAddr.Addr(), 0), at, script); err != nil {
		r.t.Fatal(err)
	}
	if e.app, err = l.AcceptConn(); err != nil {
		r.t.Fatal(err)
	}
	_ = e.app.SetDeadline(time.Now().Add(patience))
	return e
}

// open makes an encrypted connection; active: we open it. The script's own ENO goes
// before cfg's.
func (r *rig) open(active bool, o socket.ConnOptions, script wirepeer.Script, cfg wirepeer.Config) *end {
	r.t.Helper()
	var e *end
	var wait func() (*socket.Conn, error)
	if active {
		if cfg.TEPs == nil {
			cfg.TEPs = []wirepeer.TEP{wirepeer.Curve25519, wirepeer.P256, wirepeer.P521, wirepeer.Curve448}
		}
		if script.ENO == nil && script.Answer == nil {
			script.Answer = cfg.Answer
		}
		e = &end{t: r.t, ctx: r.ctx}
		e.peer, wait = r.dial(o, script)
	} else {
		if script.ENO == nil {
			script.ENO = cfg.Offer()
		}
		e = r.accept(o, script)
	}
	var err error
	if e.s, err = wirepeer.Handshake(r.ctx, e.peer, cfg); err != nil {
		r.t.Fatal(err)
	}
	if active {
		if e.app, err = wait(); err != nil {
			r.t.Fatal(err)
		}
	}
	return e
}

// plain makes a connection that has to be in clear, carries data and shows no ENO
// option after the SYNs.
func (r *rig) plain(active bool, o socket.ConnOptions, script wirepeer.Script, why tcpcrypt.Reason) *end {
	r.t.Helper()
	e := &end{t: r.t, ctx: r.ctx}
	if active {
		var wait func() (*socket.Conn, error)
		var err error
		e.peer, wait = r.dial(o, script)
		if e.app, err = wait(); err != nil {
			r.t.Fatal(err)
		}
	} else {
		e = r.accept(o, script)
	}
	e.talkInClear()
	if sec := e.security(); sec.Encrypted || why != "" && sec.Reason != why {
		r.t.Errorf("encrypted %t, reason %q; want in clear, %q", sec.Encrypted, sec.Reason, why)
	}
	for _, s := range e.ours() {
		if !s.Flags.Has(wirepeer.SYN) && s.HasENO() {
			r.t.Errorf("ENO on a plain connection: %v", &s)
		}
	}
	return e
}

func (e *end) security() socket.Security {
	e.t.Helper()
	s, err := e.app.Security(e.ctx)
	if err != nil {
		e.t.Fatal(err)
	}
	return s
}

// ours are our segments as the peer has received them.
func (e *end) ours() []wirepeer.Segment { return received(e.peer) }

func received(peer *wirepeer.Conn) (all []wirepeer.Segment) {
	for _, s := range peer.Trace() {
		if !s.Out {
			all = append(all, s.Segment)
		}
	}
	return all
}

// sent is the first segment of the peer's.
func sent(peer *wirepeer.Conn) wirepeer.Segment {
	for _, s := range peer.Trace() {
		if s.Out {
			return s.Segment
		}
	}
	return wirepeer.Segment{}
}

// stream is what our segments carried, put together.
func (e *end) stream() (b []byte) {
	all := e.ours()
	start := all[0].Seq + 1
	for _, s := range all[1:] {
		at := int(s.Seq - start)
		if at <= len(b) && at+len(s.Payload) > len(b) {
			b = append(b[:at], s.Payload...)
		}
	}
	return b
}

func (e *end) write(b string) {
	e.t.Helper()
	if _, err := e.app.Write([]byte(b)); err != nil {
		e.t.Fatal(err)
	}
}

func (e *end) read(want string) {
	e.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(e.app, got); err != nil || string(got) != want {
		e.t.Fatalf("read %q, %v; want %q", got[:n], err, want)
	}
}

// frame is the next frame of ours.
func (e *end) frame() wirepeer.Frame {
	e.t.Helper()
	f, err := e.s.Receive(e.ctx)
	if err != nil {
		e.t.Fatal(err)
	}
	return f
}

// talk sends something both ways, encrypted.
func (e *end) talk() {
	e.t.Helper()
	e.write("ping")
	if f := e.frame(); string(f.Data) != "ping" {
		e.t.Fatalf("peer: %q", f.Data)
	}
	e.s.Send(wirepeer.Frame{Data: []byte("pong")})
	e.read("pong")
	if sec := e.security(); !sec.Encrypted || sec.SessionID != tcpcrypt.SessionID(e.s.ID) {
		e.t.Fatalf("encrypted %t, session ID %v, the peer's %x", sec.Encrypted, sec.SessionID, e.s.ID)
	}
}

func (e *end) talkInClear() {
	e.t.Helper()
	e.write("ping")
	if got, err := e.peer.Read(e.ctx, 4); string(got) != "ping" || err != nil {
		e.t.Fatalf("peer: %q, %v", got, err)
	}
	e.peer.Write([]byte("pong"))
	e.read("pong")
}

// aborted holds that the application gets an error that is want (nil: any), no byte and
// no end of stream, and the peer RST.
func (e *end) aborted(want error) {
	e.t.Helper()
	n, err := e.app.Read(make([]byte, 100))
	if n != 0 || err == nil || errors.Is(err, io.EOF) || want != nil && !errors.Is(err, want) {
		e.t.Errorf("application: %d bytes, %v; want %v", n, err, want)
	}
	e.reset()
}

func (e *end) reset() {
	e.t.Helper()
	if _, err := e.peer.Seen(e.ctx, "RST", func(s *wirepeer.Traced) bool { return !s.Out && s.Flags.Has(wirepeer.RST) }); err != nil {
		e.t.Errorf("peer: %v, want RST", err)
	}
}

// both runs a test for connections that we open and for those opened to us.
func both(t *testing.T, test func(t *testing.T, active bool)) {
	t.Helper()
	t.Parallel()
	t.Run("active", func(t *testing.T) { t.Parallel(); test(t, true) })
	t.Run("passive", func(t *testing.T) { t.Parallel(); test(t, false) })
}

// option makes the peer's SYN-form option: as an answer it has the role bit.
func option(active bool, subs ...byte) []byte {
	if active {
		return wirepeer.BuildENO(append([]byte{1}, subs...)...)
	}
	return wirepeer.BuildENO(subs...)
}

// swap makes an Out that puts other bytes in place of an option of a SYN.
func swap(from, to []byte) func(s *wirepeer.Segment) []*wirepeer.Segment {
	return func(s *wirepeer.Segment) []*wirepeer.Segment {
		p := *s
		if s.Flags.Has(wirepeer.SYN) {
			p.Options = bytes.Replace(s.Options, from, to, 1)
		}
		return []*wirepeer.Segment{&p}
	}
}

func isSYN(s *wirepeer.Segment) bool { return s.Flags.Has(wirepeer.SYN) }
