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

// TestOptionSpace: 21 bytes fit beside all that netstack sends, and fill the header; MSS
// is never dropped; what does not fit is left out.
func TestOptionSpace(t *testing.T) {
	for _, tt := range []struct{ length, header int }{
		{4, 24}, {5, 28}, {19, 40}, {20, 40}, {21, 40}, {22, 20},
	} {
		t.Run(fmt.Sprint(tt.length), func(t *testing.T) {
			p := tcptest.New(t, opts(&toy{Length: tt.length}, &toy{Length: tt.length}))
			p.Trace()
			e := connect(t, p)
			fits := tt.length <= 21
			if e.active.Secure().Encrypted() != fits {
				t.Errorf("encrypted: %v", !fits)
			}
			e.exchange(t, 1000)
			e.finish(t)
			for _, pk := range p.Packets() {
				if !pk.IsSYN() {
					continue
				}
				o := pk.Options()
				if len(o) != tt.header {
					t.Errorf("%d bytes of options, want %d: %x", len(o), tt.header, o)
				}
				got := header.ParseSynOptions(o, pk.Flags(header.TCPFlagAck))
				if got.MSS != 1460 || !got.TS || !got.SACKPermitted || got.WS <= 0 {
					t.Errorf("options %+v from %x", got, o)
				}
				want := 0
				if fits {
					want = tt.length
				}
				if n := len(pk.Option(toyKind)); n != want {
					t.Errorf("option of %d bytes, want %d: %x", n, want, o)
				}
			}
		})
	}
}

// TestSpaceInNonSYNSegments: no packet exceeds the MTU, while the option is sent or
// later, with SACK blocks or without; and the size of full segments is the same all
// along, since it is computed once.
func TestSpaceInNonSYNSegments(t *testing.T) {
	const mtu = 1500
	for _, tt := range []struct {
		name  string
		strip bool // of timestamps and SACK
		full  int
	}{
		{"timestamps and SACK", false, mtu - 40 - 40},
		{"neither", true, mtu - 40 - 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tcptest.New(t, opts(new(toy), new(toy)))
			p.Trace()
			n := 0
			p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet {
				if pk.IsSYN() && tt.strip {
					pk.Strip(header.TCPOptionTS)
					pk.Strip(header.TCPOptionSACKPermitted)
				}
				if n++; n > 50 && n%17 == 0 {
					return nil
				}
				return []*tcptest.Packet{pk}
			})
			e := connect(t, p)
			if !e.active.Secure().Encrypted() {
				t.Fatal("not encrypted")
			}
			// The active end writes while its segments still carry the option.
			e.exchange(t, 300_000)
			e.finish(t)
			full := 0
			sacks := false
			for _, pk := range p.Packets() {
				if len(pk.IP) > mtu {
					t.Errorf("%d bytes: %s", len(pk.IP), pk)
				}
				if pk.Dir == tcptest.AtoB {
					full = max(full, len(pk.Payload()))
					sacks = sacks || pk.Option(header.TCPOptionSACK) != nil
				}
			}
			if full != tt.full {
				t.Errorf("full segments have %d bytes, want %d", full, tt.full)
			}
			if sacks == tt.strip {
				t.Errorf("SACK blocks seen: %v", sacks)
			}
		})
	}
}

// TestAdvertisedMSS is the path's, not the NIC's, for who opens, for a listener, a
// Forwarder and a cookie; and no packet is larger than the path.
func TestAdvertisedMSS(t *testing.T) {
	const nic, path = 9000, 1400
	mtu := func(local, remote netip.Addr) uint32 {
		if local == remote {
			t.Errorf("asked about %s to itself", local)
		}
		return path
	}
	for _, family := range []netip.Addr{tcptest.B4, tcptest.B6} {
		for _, how := range []string{"listener", "forwarder", "cookie", "plain listener"} {
			t.Run(fmt.Sprint(family, " ", how), func(t *testing.T) {
				o := tcptest.Options{
					A:   tcp.NewProtocolWithOptions(tcp.Options{Extension: new(toy), MTU: mtu}),
					B:   tcp.NewProtocolWithOptions(tcp.Options{Extension: &toy{Off: how == "plain listener"}, MTU: mtu}),
					MTU: nic,
				}
				p := tcptest.New(t, o)
				p.Trace()
				at := netip.AddrPortFrom(family, port)
				c := p.NewConn(p.A, family)
				var s *tcptest.Conn
				if how == "forwarder" {
					got := p.Forward(t.Context(), p.B)
					if err := c.StartConnect(at); err != nil {
						t.Fatal(err)
					}
					s = (<-got).Conn
				} else {
					always := tcpip.TCPAlwaysUseSynCookies(how == "cookie")
					if err := p.B.SetTransportProtocolOption(tcp.ProtocolNumber, &always); err != nil {
						t.Fatal(err)
					}
					l := p.Listen(p.B, at, 10)
					defer l.Close()
					if err := c.StartConnect(at); err != nil {
						t.Fatal(err)
					}
					var err error
					if s, err = l.Accept(); err != nil {
						t.Fatal(err)
					}
				}
				if err := c.WaitReady(); err != nil {
					t.Fatal(err)
				}
				if err := s.WaitReady(); err != nil {
					t.Fatal(err)
				}
				e := ends{p, c, s}
				e.exchange(t, 200_000)
				e.finish(t)
				headers := 40
				if family.Is6() {
					headers = 60
				}
				for _, pk := range p.Packets() {
					if pk.IsSYN() {
						if got := header.ParseSynOptions(pk.Options(), pk.Flags(header.TCPFlagAck)).MSS; int(got) != path-headers {
							t.Errorf("MSS %d, want %d: %s", got, path-headers, pk)
						}
					}
					if len(pk.IP) > path {
						t.Errorf("%d bytes: %s", len(pk.IP), pk)
					}
				}
			})
		}
	}
}

// TestPathMTUCapsWhatIsSent although the peer takes more.
func TestPathMTUCapsWhatIsSent(t *testing.T) {
	for _, setter := range []bool{false, true} {
		t.Run(fmt.Sprintf("SetMTU=%v", setter), func(t *testing.T) {
			o := opts(new(toy), nil)
			o.MTU = 9000
			if !setter {
				o.A = tcp.NewProtocolWithOptions(tcp.Options{Extension: new(toy), MTU: func(_, _ netip.Addr) uint32 { return 1280 }})
			}
			p := tcptest.New(t, o)
			p.Trace()
			l := p.Listen(p.B, netip.AddrPortFrom(tcptest.B4, port), 10)
			defer l.Close()
			c := p.NewConn(p.A, tcptest.B4)
			if setter {
				c.Secure().SetMTU(1280)
			}
			if err := c.Connect(netip.AddrPortFrom(tcptest.B4, port)); err != nil {
				t.Fatal(err)
			}
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			e := ends{p, c, s}
			e.exchange(t, 100_000)
			e.finish(t)
			for _, pk := range p.Packets() {
				if len(pk.IP) > 1280 {
					t.Errorf("%d bytes: %s", len(pk.IP), pk)
				}
			}
		})
	}
}
