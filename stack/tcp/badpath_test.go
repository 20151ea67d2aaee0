package tcp_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

// TestBadPaths sends much through paths that lose, reorder, repeat, cut up or join
// segments, with both ways of finding losses.
func TestBadPaths(t *testing.T) {
	const percent = 100
	hooks := map[string]func(r *rand.Rand) tcptest.Hook{
		"loss": func(r *rand.Rand) tcptest.Hook {
			return func(pk *tcptest.Packet) []*tcptest.Packet {
				if r.IntN(percent) < 2 {
					return nil
				}
				return []*tcptest.Packet{pk}
			}
		},
		"reordering": func(r *rand.Rand) tcptest.Hook {
			var held [2]*tcptest.Packet
			return func(pk *tcptest.Packet) []*tcptest.Packet {
				if h := held[pk.Dir]; h != nil {
					held[pk.Dir] = nil
					return []*tcptest.Packet{pk, h}
				}
				if r.IntN(percent) < 5 {
					held[pk.Dir] = pk
					return nil
				}
				return []*tcptest.Packet{pk}
			}
		},
		"loss and reordering": func(r *rand.Rand) tcptest.Hook {
			var held [2]*tcptest.Packet
			return func(pk *tcptest.Packet) []*tcptest.Packet {
				if r.IntN(percent) < 1 {
					return nil
				}
				if h := held[pk.Dir]; h != nil {
					held[pk.Dir] = nil
					return []*tcptest.Packet{pk, h}
				}
				if r.IntN(percent) < 5 {
					held[pk.Dir] = pk
					return nil
				}
				return []*tcptest.Packet{pk}
			}
		},
		"duplicates": func(r *rand.Rand) tcptest.Hook {
			return func(pk *tcptest.Packet) []*tcptest.Packet {
				if r.IntN(percent) < 20 {
					return []*tcptest.Packet{pk, pk.Clone()}
				}
				return []*tcptest.Packet{pk}
			}
		},
		"resegmentation": func(r *rand.Rand) tcptest.Hook {
			return func(pk *tcptest.Packet) []*tcptest.Packet { return pk.Split(1 + r.IntN(700)) }
		},
		"coalescing": func(r *rand.Rand) tcptest.Hook {
			var held *tcptest.Packet
			return func(pk *tcptest.Packet) []*tcptest.Packet {
				if pk.Dir == tcptest.BtoA || len(pk.Payload()) == 0 {
					if h := held; h != nil && pk.Dir == h.Dir {
						held = nil
						return []*tcptest.Packet{h, pk}
					}
					return []*tcptest.Packet{pk}
				}
				h := held
				if h == nil {
					if r.IntN(2) == 0 {
						held = pk
						return nil
					}
					return []*tcptest.Packet{pk}
				}
				held = nil
				if h.TCP().SequenceNumber()+uint32(len(h.Payload())) != pk.TCP().SequenceNumber() {
					return []*tcptest.Packet{h, pk}
				}
				h.SetPayload(append(bytes.Clone(h.Payload()), pk.Payload()...))
				return []*tcptest.Packet{h}
			}
		},
	}
	for name, hook := range hooks {
		for _, rack := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/rack=%v", name, rack), func(t *testing.T) {
				t.Parallel()
				p := tcptest.New(t, opts(new(toy), new(toy)))
				if !rack {
					none := tcpip.TCPRecovery(0)
					for _, s := range []*stack.Stack{p.A, p.B} {
						if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, &none); err != nil {
							t.Fatal(err)
						}
					}
				}
				p.SetHook(hook(rand.New(rand.NewPCG(1, 2))))
				e := connect(t, p)
				if !e.active.Secure().Encrypted() {
					t.Fatal("not encrypted")
				}
				const size = 1 << 20
				b := random(size)
				send(t, e.active, e.server, b)
				send(t, e.server, e.active, b[:size/3])
				e.close()
			})
		}
	}
}

// TestOneByteSegments: every byte of both streams in a segment of its own.
func TestOneByteSegments(t *testing.T) {
	p := tcptest.New(t, opts(new(toy), new(toy)))
	p.SetHook(func(pk *tcptest.Packet) []*tcptest.Packet { return pk.Split(1) })
	e := connect(t, p)
	e.exchange(t, 3000)
	e.finish(t)
}
