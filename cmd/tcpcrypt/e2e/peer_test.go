package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// everyAlgorithm is a [crypto] section that has them all.
const everyAlgorithm = `teps = ["curve25519", "p256", "p521", "curve448"]
aeads = ["aes128gcm", "aes256gcm", "chacha20poly1305"]`

// An outbound is host a with a daemon, and wire peers that play the server.
type outbound struct {
	*network
	daemon *daemon
	last   atomic.Uint32 // peer address given out
}

func newOutbound(t *testing.T, config string) *outbound {
	t.Helper()
	n := newNetwork(t, networkOptions{})
	n.wirePeers(t)
	return &outbound{network: n, daemon: n.a.up(t, config)}
}

// A listener is a wire peer's.
type listener struct{ *wirepeer.Listener }

// server makes a peer with an address of its own listen on port 80.
func (o *outbound) server(t *testing.T, v6 bool, script func() wirepeer.Script) (netip.AddrPort, *listener) {
	t.Helper()
	at := netip.AddrPortFrom(peerAddr(v6, byte(o.last.Add(1))), 80)
	l, err := o.peers.Listen(at, script)
	if err != nil {
		t.Fatal(err)
	}
	return at, &listener{l}
}

// connect lets the application on host a connect to a new peer of that script.
func (o *outbound) connect(t *testing.T, script wirepeer.Script) (*net.TCPConn, *wirepeer.Conn) {
	t.Helper()
	at, l := o.server(t, false, func() wirepeer.Script { return script })
	app := o.a.mustDial(t, at)
	peer, err := l.Accept(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	return app, peer
}

// encrypted is connect followed by the key exchange.
func (o *outbound) encrypted(t *testing.T, script wirepeer.Script, cfg wirepeer.Config) (*net.TCPConn, *wirepeer.Session) {
	t.Helper()
	if script.Answer == nil {
		script.Answer = cfg.Answer
	}
	app, peer := o.connect(t, script)
	s, err := wirepeer.Handshake(soon(t), peer, cfg)
	if err != nil {
		t.Fatalf("key exchange: %v", err)
	}
	return app, s
}

// handshake accepts a connection and does the key exchange meanwhile; what it returns
// waits for the session.
func (l *listener) handshake(cfg wirepeer.Config) func(t *testing.T) *wirepeer.Session {
	type result struct {
		s   *wirepeer.Session
		err error
	}
	done := make(chan result, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		var r result
		var peer *wirepeer.Conn
		if peer, r.err = l.Accept(ctx); r.err == nil {
			r.s, r.err = wirepeer.Handshake(ctx, peer, cfg)
		}
		done <- r
	}()
	return func(t *testing.T) *wirepeer.Session {
		t.Helper()
		r := <-done
		if r.err != nil {
			t.Fatalf("key exchange: %v", r.err)
		}
		return r.s
	}
}

// to matches the connection to that peer.
func to(remote netip.AddrPort) func(c conn) bool {
	return func(c conn) bool { return c.Remote == remote.String() }
}

// An inbound is host b with a daemon and a service on port 80, and wire peers that play
// the client.
type inbound struct {
	*network
	daemon  *daemon
	service *net.TCPListener
}

func newInbound(t *testing.T, config string) *inbound {
	t.Helper()
	n := newNetwork(t, networkOptions{})
	n.wirePeers(t)
	return &inbound{network: n, daemon: n.b.up(t, config), service: n.b.listen(t, 80)}
}

func (i *inbound) dial(t *testing.T, v6 bool, script wirepeer.Script) *wirepeer.Conn {
	t.Helper()
	peer, err := i.peers.Dial(soon(t), netip.AddrPortFrom(peerAddr(v6, 1), 0), netip.AddrPortFrom(i.b.addr(v6), 80), script)
	if err != nil {
		t.Fatal(err)
	}
	return peer
}

// encrypted makes a connection with its key exchange, and accepts it at the service.
func (i *inbound) encrypted(t *testing.T, script wirepeer.Script, cfg wirepeer.Config) (*net.TCPConn, *wirepeer.Session) {
	t.Helper()
	if script.ENO == nil {
		script.ENO = cfg.Offer()
	}
	peer := i.dial(t, false, script)
	s, err := wirepeer.Handshake(soon(t), peer, cfg)
	if err != nil {
		t.Fatalf("key exchange: %v", err)
	}
	return accept(t, i.service), s
}

// from matches the connection of that peer.
func from(local netip.AddrPort) func(c conn) bool {
	return func(c conn) bool { return c.Remote == local.String() }
}

// exchange moves data both ways between a program and a peer's session, each way to its
// proper end.
func exchange(t *testing.T, app *net.TCPConn, s *wirepeer.Session, up, down []byte) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := app.Write(up)
		if err == nil {
			err = app.CloseWrite()
		}
		done <- err
	}()
	got, err := s.ReadData(soon(t), -1)
	if err != nil || !bytes.Equal(got, up) {
		t.Fatalf("peer read %d bytes, %v; want %d and the end", len(got), err, len(up))
	}
	if err := <-done; err != nil {
		t.Fatalf("program wrote: %v", err)
	}
	s.SendData(down, wirepeer.MaxData)
	s.Send(wirepeer.Frame{FIN: true})
	mustReadAll(t, app, down)
}

// checkConn compares what conns says of a finished encrypted connection with what the
// peer knows.
func checkConn(t *testing.T, got, want conn) {
	t.Helper()
	want.ID, want.State, want.Encrypted = got.ID, got.State, true
	if got.String() != want.String() {
		t.Errorf("tcpcrypt conns says\n%v, want\n%v", got, want)
	}
	if got.ID == nil || !slices.Contains([]string{"open", "closed"}, got.State) {
		t.Errorf("id %v, state %q", got.ID, got.State)
	}
}

func ptr(s string) *string { return &s }

// combinations are all TEPs with all ciphers over both families.
func combinations(t *testing.T, test func(t *testing.T, v6 bool, cfg wirepeer.Config)) {
	t.Helper()
	for _, f := range families {
		for _, tep := range wirepeer.TEPs {
			for _, cipher := range wirepeer.Ciphers {
				t.Run(fmt.Sprintf("%s/%v/%v", f.name, tep, cipher), func(t *testing.T) {
					test(t, f.v6, wirepeer.Config{TEPs: []wirepeer.TEP{tep}, Ciphers: []wirepeer.Cipher{cipher}})
				})
			}
		}
	}
}

func TestPeerAsServerWithEveryTEPAndAEAD(t *testing.T) {
	t.Parallel()
	o := newOutbound(t, everything(require, everyAlgorithm))
	up, down := streamBytes(150_000), streamBytes(200_000)
	combinations(t, func(t *testing.T, v6 bool, cfg wirepeer.Config) {
		t.Helper()
		at, l := o.server(t, v6, func() wirepeer.Script { return wirepeer.Script{Answer: cfg.Answer} })
		// Under require the program's connection is there once the keys are.
		exchanged := l.handshake(cfg)
		app := o.a.mustDial(t, at)
		s := exchanged(t)
		if s.Role != wirepeer.B || !slices.Equal(s.Offered, wirepeer.Ciphers) {
			t.Errorf("role %v, offered ciphers %v", s.Role, s.Offered)
		}
		exchange(t, app, s, up, down)
		got := o.daemon.conn(t, "the session id", bySession(s))
		checkConn(t, got, conn{Direction: "outbound", Local: app.LocalAddr().String(), Remote: at.String(), Role: ptr("A"),
			TEP: ptr(s.TEP.String()), AEAD: ptr(s.Cipher.String()), SessionID: ptr(fmt.Sprintf("%x", s.ID)),
			BytesSent: int64(len(up)), BytesReceived: int64(len(down))})
	})
}

func TestPeerAsClientWithEveryTEPAndAEAD(t *testing.T) {
	t.Parallel()
	in := newInbound(t, everything(require, everyAlgorithm))
	up, down := streamBytes(150_000), streamBytes(200_000)
	combinations(t, func(t *testing.T, v6 bool, cfg wirepeer.Config) {
		t.Helper()
		peer := in.dial(t, v6, wirepeer.Script{ENO: cfg.Offer()})
		s, err := wirepeer.Handshake(soon(t), peer, cfg)
		if err != nil {
			t.Fatalf("key exchange: %v", err)
		}
		app := accept(t, in.service)
		if got := addrPort(app.RemoteAddr()); got != peer.Local() {
			t.Errorf("the service sees %v as client, want %v", got, peer.Local())
		}
		exchange(t, app, s, up, down)
		got := in.daemon.conn(t, "the session id", bySession(s))
		checkConn(t, got, conn{Direction: "inbound", Local: peer.Remote().String(), Remote: peer.Local().String(), Role: ptr("B"),
			TEP: ptr(s.TEP.String()), AEAD: ptr(s.Cipher.String()), SessionID: ptr(fmt.Sprintf("%x", s.ID)),
			BytesSent: int64(len(up)), BytesReceived: int64(len(down))})
	})
}

func TestPreferencesDecide(t *testing.T) {
	t.Parallel()
	in := newInbound(t, everything(opportunistic, `teps = ["p521", "curve25519"]
aeads = ["chacha20poly1305", "aes128gcm"]`))
	for _, c := range []struct {
		name   string
		cfg    wirepeer.Config
		tep    wirepeer.TEP
		cipher wirepeer.Cipher
	}{
		{"everything offered", wirepeer.Config{}, wirepeer.P521, wirepeer.ChaCha20Poly1305},
		{"second of each", wirepeer.Config{TEPs: []wirepeer.TEP{wirepeer.P256, wirepeer.Curve25519},
			Ciphers: []wirepeer.Cipher{wirepeer.AES256GCM, wirepeer.AES128GCM}}, wirepeer.Curve25519, wirepeer.AES128GCM},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, s := in.encrypted(t, wirepeer.Script{}, c.cfg)
			if s.TEP != c.tep || s.Cipher != c.cipher {
				t.Errorf("%v and %v, want %v and %v", s.TEP, s.Cipher, c.tep, c.cipher)
			}
		})
	}
	t.Run("order on the wire", func(t *testing.T) {
		o := newOutbound(t, everything(opportunistic, `teps = ["p521", "curve25519"]
aeads = ["chacha20poly1305", "aes128gcm"]`))
		_, s := o.encrypted(t, wirepeer.Script{}, wirepeer.Config{})
		if want := []wirepeer.Cipher{wirepeer.ChaCha20Poly1305, wirepeer.AES128GCM}; !slices.Equal(s.Offered, want) {
			t.Errorf("offered %v, want %v", s.Offered, want)
		}
	})
}
