package wirepeer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A pair is two hosts joined in memory.
type pair struct {
	client, server *Host
	from, to       netip.AddrPort
	listener       *Listener
}

func newPair(t *testing.T, v6 bool, script func() Script) *pair {
	t.Helper()
	x, y := Pipe()
	p := &pair{client: NewHost(x), server: NewHost(y),
		from: netip.MustParseAddrPort("10.0.0.1:0"), to: netip.MustParseAddrPort("10.0.0.2:80")}
	if v6 {
		p.from, p.to = netip.MustParseAddrPort("[fd00::1]:0"), netip.MustParseAddrPort("[fd00::2]:80")
	}
	t.Cleanup(p.client.Close)
	t.Cleanup(p.server.Close)
	var err error
	if p.listener, err = p.server.Listen(p.to, script); err != nil {
		t.Fatal(err)
	}
	return p
}

// connect makes a connection and returns both ends.
func (p *pair) connect(ctx context.Context, t *testing.T, script Script) (client, server *Conn) {
	t.Helper()
	client, err := p.client.Dial(ctx, p.from, p.to, script)
	if err != nil {
		t.Fatal(err)
	}
	server, err = p.listener.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

// sessions does the key exchange at both ends.
func sessions(ctx context.Context, t *testing.T, client, server *Conn, cc, sc Config) (c, s *Session) {
	t.Helper()
	type result struct {
		s   *Session
		err error
	}
	done := make(chan result, 1)
	go func() {
		s, err := Handshake(ctx, server, sc)
		done <- result{s, err}
	}()
	c, err := Handshake(ctx, client, cc)
	r := <-done
	if err := errors.Join(err, r.err); err != nil {
		t.Fatal(err)
	}
	if c.ID != r.s.ID {
		t.Fatalf("session ids differ: %x, %x", c.ID, r.s.ID)
	}
	return c, r.s
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func pattern(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

// transfer sends data one way and ends that way.
func transfer(ctx context.Context, t *testing.T, from, to *Session, data []byte, frame int) {
	t.Helper()
	from.SendData(data, frame)
	from.Send(Frame{FIN: true})
	got, err := to.ReadData(ctx, -1)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%v to %v: %d bytes, %v; want %d", from.Role, to.Role, len(got), err, len(data))
	}
}

func TestEveryTEPAndCipher(t *testing.T) {
	for _, tep := range TEPs {
		for _, cipher := range Ciphers {
			for _, v6 := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v/%v/v6=%t", tep, cipher, v6), func(t *testing.T) {
					ctx := testContext(t)
					cfg := Config{TEPs: []TEP{tep}, Ciphers: []Cipher{cipher}}
					p := newPair(t, v6, func() Script { return Script{Answer: cfg.Answer} })
					client, server := p.connect(ctx, t, Script{ENO: Config{}.Offer()})
					c, s := sessions(ctx, t, client, server, Config{}, cfg)
					if c.TEP != tep || c.Cipher != cipher || c.Role != A || s.Role != B {
						t.Errorf("negotiated %v %v %v", c.TEP, c.Cipher, c.Role)
					}
					transfer(ctx, t, c, s, pattern(100_000), MaxData)
					transfer(ctx, t, s, c, pattern(100_000), 1000)
				})
			}
		}
	}
}

func TestSurvivesWhatTheNetworkDoes(t *testing.T) {
	for name, script := range map[string]Script{
		"one-byte segments":   {SegmentSize: 1},
		"loss":                {Out: Lossy(7, 0)},
		"reordering":          {Out: Lossy(0, 3)},
		"loss and reordering": {Out: Lossy(11, 5)},
		"options":             {Timestamps: true, SACKPermitted: true, WindowScale: 3, Window: 4000},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			cfg := Config{InitTail: []byte("ignored")}
			script.RTO = 5 * time.Millisecond
			size := 200_000
			if script.SegmentSize == 1 {
				size = 5000
			}
			mirror := script
			mirror.Answer = cfg.Answer
			if script.Out != nil {
				mirror.Out = Lossy(13, 4)
			}
			script.ENO = cfg.Offer()
			p := newPair(t, false, func() Script { return mirror })
			client, server := p.connect(ctx, t, script)
			c, s := sessions(ctx, t, client, server, cfg, cfg)
			transfer(ctx, t, c, s, pattern(size), 5000)
			transfer(ctx, t, s, c, pattern(size), 5000)
		})
	}
}

func TestMarksSegmentsUntilThePeersFirst(t *testing.T) {
	ctx := testContext(t)
	p := newPair(t, false, func() Script { return Script{Answer: Config{}.Answer} })
	client, server := p.connect(ctx, t, Script{ENO: Config{}.Offer()})
	c, s := sessions(ctx, t, client, server, Config{}, Config{})
	transfer(ctx, t, c, s, []byte("x"), 1)
	transfer(ctx, t, s, c, []byte("y"), 1)
	heard := false
	for _, seg := range client.Trace() {
		switch {
		case !seg.Out:
			heard = heard || !seg.Flags.Has(SYN)
		case seg.HasENO() == heard:
			t.Errorf("ENO = %t where it should not be: %v", seg.HasENO(), &seg.Segment)
		}
	}
	for _, seg := range server.Trace() {
		if seg.Out && seg.HasENO() != seg.Flags.Has(SYN) {
			t.Errorf("ENO = %t where it should not be: %v", seg.HasENO(), &seg.Segment)
		}
	}
}

func TestInClearWhereENOFails(t *testing.T) {
	for name, c := range map[string]struct {
		client, server Script
		want           error
	}{
		"no answer":      {Script{ENO: Config{}.Offer()}, Script{}, errNoOption},
		"same role":      {Script{ENO: BuildENO(0x23)}, Script{ENO: BuildENO(0x23)}, errSameRole},
		"nothing common": {Script{ENO: BuildENO(0x21)}, Script{ENO: BuildENO(1, 0x23)}, errNoCommonTEP},
		"stripped":       {Script{ENO: BuildENO(0x23), Mark: func(*Segment, bool) bool { return false }}, Script{ENO: BuildENO(1, 0x23)}, errNotMarked},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			p := newPair(t, false, func() Script { return c.server })
			client, server := p.connect(ctx, t, c.client)
			if _, err := server.Agreement(); !errors.Is(err, c.want) {
				t.Errorf("server: %v, want %v", err, c.want)
			}
			client.WriteFIN([]byte("clear"))
			if got, err := server.ReadAll(ctx); string(got) != "clear" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
}

func TestNoticesWhatIsWrongWithTheStream(t *testing.T) {
	for name, c := range map[string]struct {
		send func(s *Session)
		want error
	}{
		"flipped byte":     {func(s *Session) { b := s.Seal(Frame{Data: []byte("x")}); b[5] ^= 1; s.Conn.Write(b) }, errAuth},
		"replay":           {func(s *Session) { b := s.Seal(Frame{}); s.Conn.Write(b); s.Conn.Write(b) }, errAuth},
		"truncated":        {func(s *Session) { s.Send(Frame{Data: []byte("x")}); s.Conn.WriteFIN(nil) }, ErrNoFINp},
		"inside a frame":   {func(s *Session) { s.Conn.WriteFIN(s.Seal(Frame{Data: []byte("x")})[:9]) }, ErrNoFINp},
		"short frame":      {func(s *Session) { s.Conn.Write([]byte{0, 0, 16}) }, errFrameShort},
		"reset":            {func(s *Session) { s.Conn.Reset() }, ErrReset},
		"behind the FINp":  {func(s *Session) { s.Conn.Write(s.Seal(Frame{FIN: true})); s.Conn.Write([]byte{1}) }, nil},
		"everything right": {func(s *Session) { s.Send(Frame{FIN: true}) }, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			p := newPair(t, false, func() Script { return Script{Answer: Config{}.Answer} })
			client, server := p.connect(ctx, t, Script{ENO: Config{}.Offer()})
			a, b := sessions(ctx, t, client, server, Config{}, Config{})
			c.send(a)
			_, err := b.ReadData(ctx, -1)
			switch {
			case errors.Is(c.want, io.EOF):
				if err != nil {
					t.Errorf("%v, want a clean end", err)
				}
			case err == nil, c.want != nil && !errors.Is(err, c.want):
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

func TestRekeysAreFollowedAndAnswered(t *testing.T) {
	ctx := testContext(t)
	p := newPair(t, false, func() Script { return Script{Answer: Config{}.Answer} })
	client, server := p.connect(ctx, t, Script{ENO: Config{}.Offer()})
	a, b := sessions(ctx, t, client, server, Config{}, Config{})
	a.Send(Frame{Rekey: true})
	a.Send(Frame{Rekey: true, Data: []byte("ping")})
	if got, err := b.ReadData(ctx, 4); string(got) != "ping" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	b.Send(Frame{Data: []byte("pong")})
	if got, err := a.ReadData(ctx, 4); string(got) != "pong" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	if sent, received := b.Generations(); sent != 2 || received != 2 {
		t.Errorf("generations %d, %d; want 2, 2", sent, received)
	}
}

func TestStraySegmentsAreRefused(t *testing.T) {
	ctx := testContext(t)
	p := newPair(t, true, func() Script { return Script{} })
	elsewhere := netip.AddrPortFrom(p.to.Addr(), 81)
	if _, err := p.client.Dial(ctx, p.from, elsewhere, Script{}); !errors.Is(err, ErrRefused) {
		t.Errorf("dial: %v, want %v", err, ErrRefused)
	}
}
