package stack

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

// BenchmarkRelay is one stream between two programs through two relays, in memory, with
// super-segments whole. The programs' own netstacks run on the same processors.
func BenchmarkRelay(b *testing.B) {
	for _, mode := range []string{"direct", "clear", "encrypted"} {
		b.Run("mode="+mode, func(b *testing.B) {
			rule := Rule{Policy: Bypass}
			if mode == "encrypted" {
				rule.Policy = Require
			}
			quiet := slog.New(slog.DiscardHandler)
			l := newLAN(b)
			client, server := l.addHost(b), l.addHost(b)
			if mode == "direct" {
				server.h4 = server.addr4
			} else {
				client.startRelay(b, Options{Log: quiet, Outbound: func(_, _ netip.AddrPort) Rule { return rule }})
				server.startRelay(b, Options{Log: quiet, Inbound: func(_, _ netip.AddrPort) (Rule, bool) { return rule, true }}, 80)
			}
			received := make(chan int64)
			server.serve(b, server.h4, 80, func(c *gonet.TCPConn) {
				n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, c, make([]byte, 256<<10))
				received <- n
			})
			c := client.mustDial(b, netip.AddrPortFrom(server.addr4, 80))
			buf := make([]byte, 256<<10)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Write(buf); err != nil {
					b.Fatal(err)
				}
			}
			sendFIN(b, c)
			if n, want := <-received, int64(b.N)*int64(len(buf)); n < want {
				b.Fatalf("%d bytes arrived, want %d", n, want)
			}
		})
	}
}

// BenchmarkPingPong is the round trip of one byte between the same programs.
func BenchmarkPingPong(b *testing.B) {
	for _, relays := range []int{0, 1} {
		b.Run(fmt.Sprintf("relays=%d", relays), func(b *testing.B) {
			l := newLAN(b)
			client, server := l.addHost(b), l.addHost(b)
			if relays > 0 {
				client.startRelay(b, Options{Log: slog.New(slog.DiscardHandler)})
			}
			at := server.serve(b, server.addr4, 80, echo)
			c := client.mustDial(b, at)
			buf := make([]byte, 1)
			for b.Loop() {
				if _, err := c.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := c.Read(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
