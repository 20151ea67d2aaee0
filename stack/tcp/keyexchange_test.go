package tcp_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

// TestHandshakeTimeout: a peer that never says hello is given up.
func TestHandshakeTimeout(t *testing.T) {
	o := opts(nil, &toy{HoldHello: true})
	o.A = tcp.NewProtocolWithOptions(tcp.Options{Extension: new(toy), HandshakeTimeout: 50 * time.Millisecond})
	p := tcptest.New(t, o)
	l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, port), 10)
	defer l.Close()
	p.Trace()
	c, err := p.Dial(p.A, netip.AddrPortFrom(tcptest.B4, port))
	if !errors.Is(err, tcp.ErrHandshakeTimeout) {
		t.Errorf("dial: %v, want a timeout", err)
	}
	p.Await(func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.AtoB && pk.Flags(header.TCPFlagRst) })
	c.Close()
}

// TestShutdownDuringKeyExchange is remembered and done when keys are there.
func TestShutdownDuringKeyExchange(t *testing.T) {
	for _, close := range []bool{false, true} {
		t.Run(fmt.Sprintf("close=%v", close), func(t *testing.T) {
			p := tcptest.New(t, opts(new(toy), new(toy)))
			l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, port), 10)
			defer l.Close()
			c := p.NewConn(p.A, tcptest.B4)
			if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, port)); err != nil {
				t.Fatal(err)
			}
			<-c.Secure().Decided()
			// The other end answers when it is accepted.
			if _, err := c.EP.Write(bytes.NewReader([]byte("early")), tcpip.WriteOptions{}); err == nil {
				t.Error("wrote before keys were there")
			}
			if close {
				c.Close()
			} else if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if n, err := s.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("read: %d, %v, want the end", n, err)
			}
			if err := s.Secure().Err(); err != nil {
				t.Error(err)
			}
			if !close {
				send(t, s, c, []byte("answer"))
				c.Close()
			}
			s.Close()
		})
	}
}

// TestAbortDuringKeyExchange ends it at both ends.
func TestAbortDuringKeyExchange(t *testing.T) {
	for _, how := range []string{"abort", "linger"} {
		t.Run(how, func(t *testing.T) {
			p := tcptest.New(t, opts(new(toy), &toy{HoldHello: true}))
			l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, port), 10)
			defer l.Close()
			c := p.NewConn(p.A, tcptest.B4)
			if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, port)); err != nil {
				t.Fatal(err)
			}
			<-c.Secure().Decided()
			if how == "abort" {
				c.EP.Abort()
			} else {
				c.EP.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
				c.Close()
			}
			<-c.Secure().Ready()
			if _, err := c.EP.Write(bytes.NewReader([]byte("x")), tcpip.WriteOptions{}); err == nil {
				t.Error("write worked")
			}
		})
	}
}

// TestOverReadIsGivenBack: a handshake may read what belongs to the first record.
func TestOverReadIsGivenBack(t *testing.T) {
	p := tcptest.New(t, opts(&toy{OverRead: true}, &toy{OverRead: true}))
	// Nothing of B reaches A until B's first record is behind its hello.
	var held []*tcptest.Packet
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
		if pk.Dir != tcptest.BtoA || len(pk.Payload()) == 0 || len(held) >= 2 {
			return []*tcptest.Packet{pk}
		}
		held = append(held, pk)
		if len(held) < 2 {
			return nil
		}
		held[0].SetPayload(append(bytes.Clone(held[0].Payload()), held[1].Payload()...))
		return held[:1]
	})
	l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, port), 10)
	defer l.Close()
	c := p.NewConn(p.A, tcptest.B4)
	if err := c.StartConnect(netip.AddrPortFrom(tcptest.B4, port)); err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WaitReady(); err != nil {
		t.Fatal(err)
	}
	want := random(300)
	if _, err := s.Write(want); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read: %v", err)
	}
	ends{p, c, s}.finish(t)
}

// TestHelloHasPSH: the handshake's last byte is in a segment with PSH, which holds
// nothing of the records behind it, even if the link takes super-segments.
func TestHelloHasPSH(t *testing.T) {
	o := opts(new(toy), new(toy))
	o.Offload = true
	p := tcptest.New(t, o)
	p.Trace()
	e := connect(t, p)
	send(t, e.server, e.active, random(200_000))
	send(t, e.active, e.server, random(200_000))
	e.close()
	var seen [2]bool
	for _, pk := range p.Packets() {
		if len(pk.Payload()) > 0 && !seen[pk.Dir] {
			seen[pk.Dir] = true
			if len(pk.Payload()) != toyHello || !pk.Flags(header.TCPFlagPsh) {
				t.Errorf("first data: %s", pk)
			}
		}
	}
}
