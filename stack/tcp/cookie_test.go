package tcp_test

import (
	"fmt"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

// TestCookieVeto: beyond its limit of half-open connections a listener answers with
// cookies, whose connections are plain. An extension that refuses them has them reset
// before any data, and none is accepted.
func TestCookieVeto(t *testing.T) {
	for _, require := range []bool{false, true} {
		t.Run(fmt.Sprintf("require=%v", require), func(t *testing.T) {
			const backlog = 2
			p := tcptest.New(t, opts(nil, &toy{Require: require}))
			p.Trace()
			p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
				// SYN-ACKs of the first connections never arrive: they stay half open.
				if pk.Dir == tcptest.BtoA && pk.IsSYN() && pk.TCP().DestinationPort() < 2000 {
					return nil
				}
				return []*tcptest.Packet{pk}
			})
			at := netip.AddrPortFrom(tcptest.B4, port)
			l := p.Listen(p.B, at, backlog)
			defer l.Close()
			dial := func(port uint16) *tcptest.Conn {
				c := p.NewConn(p.A, tcptest.A4)
				if err := c.EP.Bind(tcptest.Full(netip.AddrPortFrom(tcptest.A4, port))); err != nil {
					t.Fatal(err)
				}
				if err := c.StartConnect(at); err != nil {
					t.Fatal(err)
				}
				return c
			}
			for i := range uint16(backlog) {
				defer dial(1000 + i).Close()
				p.Await(func(pk *tcptest.Packet) bool {
					return pk.Dir == tcptest.BtoA && pk.IsSYN() && pk.TCP().DestinationPort() == 1000+i
				})
			}
			c := dial(2000)
			defer c.Close()
			ready := c.WaitReady() // the reset may have come
			if ready != nil && !require {
				t.Fatal(ready)
			}
			if n := p.B.Stats().TCP.ListenOverflowSynCookieSent.Value(); n == 0 {
				t.Fatal("no cookie was sent")
			}
			if !require {
				s, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				ends{p, c, s}.exchange(t, 1000)
				s.Close()
				return
			}
			err := ready
			if err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			if _, reset := tcpError(err).(*tcpip.ErrConnectionReset); !reset {
				t.Errorf("read: %v, want a reset", err)
			}
			for range backlog {
				// What a client sends at once is answered with resets too.
				if _, _, err := l.EP.Accept(nil); err == nil {
					t.Error("a refused connection was accepted")
				}
			}
			for _, pk := range p.Packets() {
				if pk.Dir == tcptest.BtoA && len(pk.Payload()) > 0 {
					t.Errorf("data: %s", pk)
				}
			}
			p.Await(func(pk *tcptest.Packet) bool { return pk.Dir == tcptest.BtoA && pk.Flags(header.TCPFlagRst) })
			if _, ok := tcp.AsSecure(l.EP); !ok {
				t.Errorf("listener is a %T", l.EP)
			}
		})
	}
}
