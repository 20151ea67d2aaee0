package tun

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

var (
	addrA4 = netip.MustParseAddr("192.0.2.1")
	addrB4 = netip.MustParseAddr("192.0.2.2")
	addrA6 = netip.MustParseAddr("2001:db8::1")
	addrB6 = netip.MustParseAddr("2001:db8::2")
)

func TestPipeJoinsTwoStacks(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var held [][]byte
	for _, tt := range []struct {
		name string
		mtu  uint32
		size int64
		o    PipeOptions
	}{
		{"plain", 1500, 4 << 20, PipeOptions{}},
		{"gso", 65535, 16 << 20, PipeOptions{GSO: true}},
		{"gso, small mtu", 1500, 16 << 20, PipeOptions{GSO: true}},
		{"gso, hook", 1500, 4 << 20, PipeOptions{GSO: true, AToB: func(p []byte) [][]byte { return [][]byte{p} }}},
		{"gso, checksums kept", 1500, 4 << 20, PipeOptions{GSO: true, KeepChecksums: true, AToB: func(p []byte) [][]byte { return [][]byte{p} }}},
		{"loss", 1500, 1 << 20, PipeOptions{AToB: func(p []byte) [][]byte {
			if rng.IntN(200) == 0 {
				return nil
			}
			return [][]byte{p}
		}}},
		{"duplication", 1500, 1 << 20, PipeOptions{AToB: func(p []byte) [][]byte { return [][]byte{p, p} }}},
		{"reordering", 1500, 1 << 20, PipeOptions{AToB: func(p []byte) [][]byte {
			if held == nil && rng.IntN(50) == 0 {
				held = [][]byte{p}
				return nil
			}
			out := append([][]byte{p}, held...)
			held = nil
			return out
		}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			held = nil
			a, b := Pipe(tt.mtu, tt.o)
			sa := newNetstack(t, a, addrA4, addrA6)
			sb := newNetstack(t, b, addrB4, addrB6)
			for _, addr := range []netip.Addr{addrB4, addrB6} {
				to := netip.AddrPortFrom(addr, 80)
				c, s := connect(t, netstackListen(t, sb, to), func() net.Conn { return netstackDial(t, sa, to) })
				exchange(t, c, s, tt.size)
				exchange(t, s, c, tt.size)
			}
			if n := a.Dropped() + b.Dropped(); n != 0 {
				t.Errorf("the pipe dropped %d packets", n)
			}
		})
	}
}

func TestPipeGSOCarriesSuperSegments(t *testing.T) {
	var largest int
	a, b := Pipe(1500, PipeOptions{GSO: true, AToB: func(p []byte) [][]byte {
		largest = max(largest, len(p))
		return [][]byte{p}
	}})
	sa, sb := newNetstack(t, a, addrA4), newNetstack(t, b, addrB4)
	to := netip.AddrPortFrom(addrB4, 80)
	c, s := connect(t, netstackListen(t, sb, to), func() net.Conn { return netstackDial(t, sa, to) })
	exchange(t, c, s, 8<<20)
	if largest < 32<<10 {
		t.Errorf("the largest packet had %d bytes, want a super-segment", largest)
	}
}

func TestPipeRewriteReachesTheApplication(t *testing.T) {
	for _, tt := range []struct {
		name string
		keep bool
	}{{"checksums computed anew", false}, {"checksums kept", true}} {
		t.Run(tt.name, func(t *testing.T) {
			rewritten := 0
			a, b := Pipe(1500, PipeOptions{KeepChecksums: tt.keep, AToB: func(p []byte) [][]byte {
				if i := bytes.Index(p, []byte("one")); i >= 0 && rewritten == 0 {
					rewritten++
					copy(p[i:], "two")
				}
				return [][]byte{p}
			}})
			sa, sb := newNetstack(t, a, addrA6), newNetstack(t, b, addrB6)
			to := netip.AddrPortFrom(addrB6, 80)
			c, s := connect(t, netstackListen(t, sb, to), func() net.Conn { return netstackDial(t, sa, to) })
			if _, err := c.Write([]byte("one")); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 3)
			if _, err := s.Read(got); err != nil {
				t.Fatal(err)
			}
			want := "two"
			if tt.keep { // TCP refused the changed segment, and took the retransmission
				want = "one"
			}
			if string(got) != want || rewritten != 1 {
				t.Errorf("read %q with %d segments rewritten, want %q with one", got, rewritten, want)
			}
		})
	}
}

func TestPipeEndByHand(t *testing.T) {
	a, b := Pipe(1500, PipeOptions{})
	sa := newNetstack(t, a, addrA4)
	go func() { // connects to nobody; the test is the peer
		c, err := netstackDialContext(t.Context(), sa, netip.AddrPortFrom(addrB4, 7))
		if err == nil {
			_ = c.Close()
		}
	}()
	syn, err := b.Receive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ip := header.IPv4(syn)
	if h := header.TCP(ip.Payload()); !ip.IsChecksumValid() || h.Flags() != header.TCPFlagSyn || h.DestinationPort() != 7 {
		t.Fatalf("received %x, want a SYN to port 7", syn)
	}
	checkChecksums(t, syn)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for {
		if _, err := b.Receive(ctx); err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("Receive: %v, want %v", err, context.Canceled)
			}
			break
		}
	}
	b.Close()
	if _, err := b.Receive(t.Context()); !errors.Is(err, ErrClosed) {
		t.Fatalf("Receive after Close: %v, want %v", err, ErrClosed)
	}
	before := b.Dropped()
	a.Send(syn)
	if n := b.Dropped() - before; n != 1 {
		t.Errorf("a packet to the closed end: %d dropped, want 1", n)
	}
}

func TestPipeUnderSynctest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		packet := ping4(t)
		var b *PipeEnd
		delay := func(p []byte) [][]byte {
			time.AfterFunc(time.Hour, func() { b.Inject(p) })
			return nil
		}
		a, b2 := Pipe(1500, PipeOptions{AToB: delay})
		b = b2
		start := time.Now()
		a.Send(packet)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
		defer cancel()
		got, err := b.Receive(ctx)
		if err != nil || !bytes.Equal(got, packet) {
			t.Fatalf("Receive: %x, %v, want %x", got, err, packet)
		}
		if d := time.Since(start); d != time.Hour {
			t.Errorf("arrived after %v, want an hour", d)
		}
	})
}

func TestPipeCloseStopsDelivery(t *testing.T) {
	inHook := make(chan struct{})
	release := make(chan struct{})
	a, b := Pipe(1500, PipeOptions{AToB: func(p []byte) [][]byte {
		close(inHook)
		<-release
		return [][]byte{p}
	}})
	defer a.Close() // has the answer
	newNetstack(t, b, addrB4)
	a.Send(ping4(t))
	<-inHook
	closed := make(chan struct{})
	go func() {
		b.Close()
		close(closed)
	}()
	select {
	case <-closed:
		t.Error("Close returned while a packet was being delivered")
	default:
	}
	close(release)
	<-closed
	b.Close() // twice is fine
}
