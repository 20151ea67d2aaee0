package tun

import (
	"errors"
	"math"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

func TestOpenRefuses(t *testing.T) {
	if !inNetns(t) {
		return
	}
	first := openDevice(t, Options{Name: "taken0"})
	if first.Name() != "taken0" {
		t.Errorf("Name() = %q, want %q", first.Name(), "taken0")
	}
	if mtu, err := first.MTU(); mtu != maxPacket || err != nil {
		t.Errorf("MTU() = %d, %v, want %d", mtu, err, maxPacket)
	}
	for _, tt := range []struct {
		o    Options
		want error
	}{
		{Options{Name: "taken0", MTU: 1500}, unix.EBUSY},
		{Options{Name: "a-name-of-more-than-15", MTU: 1500}, nil},
		{Options{Name: "tiny0", MTU: 1279}, nil},
		{Options{Name: "huge0", MTU: 65536}, nil},
	} {
		d, err := Open(tt.o)
		if err == nil {
			_ = d.Close()
		}
		var oe *OpenError
		if !errors.As(err, &oe) || oe.Name != tt.o.Name || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("Open(%+v): %v, want an OpenError of %v", tt.o, err, tt.want)
		}
	}
}

func TestDeviceIsNotPersistent(t *testing.T) {
	if !inNetns(t) {
		return
	}
	d := openDevice(t, Options{Name: "gone0"})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName("gone0"); !errors.As(err, &netlink.LinkNotFoundError{}) {
		t.Errorf("after Close the device is there: %v", err)
	}
	<-d.Closed()
	if !errors.Is(d.Err(), ErrClosed) {
		t.Errorf("Err() = %v, want %v", d.Err(), ErrClosed)
	}
}

func TestClosedTellsWhy(t *testing.T) {
	if !inNetns(t) {
		return
	}
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, d *Device)
		want error
	}{
		{"deleted", func(t *testing.T, d *Device) {
			t.Helper()
			if err := netlink.LinkDel(linkByName(t, d.Name())); err != nil {
				t.Fatal(err)
			}
		}, ErrDeleted},
		{"down", func(t *testing.T, d *Device) {
			t.Helper()
			if err := netlink.LinkSetDown(linkByName(t, d.Name())); err != nil {
				t.Fatal(err)
			}
		}, ErrDown},
		{"closed", func(t *testing.T, d *Device) {
			t.Helper()
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		}, ErrClosed},
	} {
		for _, noOffload := range []bool{false, true} {
			t.Run(tt.name, func(t *testing.T) {
				d := openDevice(t, Options{NoOffload: noOffload})
				e := newTestEndpoint(t, d, EndpointOptions{})
				s := newNetstack(t, e, netstack4)
				c, k := connect(t, netstackListen(t, s, netip.AddrPortFrom(netstack4, 80)), func() net.Conn {
					return kernelDial(t, netip.AddrPortFrom(netstack4, 80))
				})
				exchange(t, c, k, 1<<20)
				select {
				case <-d.Closed():
					t.Fatalf("closed before anything happened: %v", d.Err())
				default:
				}
				tt.do(t, d)
				<-d.Closed()
				if !errors.Is(d.Err(), tt.want) {
					t.Errorf("Err() = %v, want %v", d.Err(), tt.want)
				}
				err := e.WritePacket(tcpPacket4(nil, 0))
				if wantErr := tt.name != "down"; (err != nil) != wantErr {
					t.Errorf("WritePacket: %v, want an error: %v", err, wantErr)
				}
			})
		}
	}
}

func TestDownBeforeFirstUpIsNotTheEnd(t *testing.T) {
	if !inNetns(t) {
		return
	}
	d, err := Open(Options{Name: "early0", MTU: 1500})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	e := newTestEndpoint(t, d, EndpointOptions{})
	if err := e.WritePacket(ping4(t)); err != nil {
		t.Errorf("WritePacket: %v, want it counted and lost", err)
	}
	if st := e.Stats(); st.DropDown != 1 {
		t.Errorf("DropDown = %d, want 1", st.DropDown)
	}
	if d.Err() != nil {
		t.Errorf("Err() = %v, want none", d.Err())
	}
}

func TestWritePacketReachesTheKernel(t *testing.T) {
	if !inNetns(t) {
		return
	}
	for _, noOffload := range []bool{false, true} {
		d := openDevice(t, Options{NoOffload: noOffload})
		replies := make(chan struct{}, 1)
		e := newTestEndpoint(t, d, EndpointOptions{Bypass: func(p []byte) bool {
			if p[9] == protoICMP && p[20] == 0 {
				replies <- struct{}{}
			}
			return false
		}})
		newNetstack(t, e, netstack4)
		ping := ping4(t) // from 192.0.2.1 to .2: turn it round
		copy(ping[12:], netstack4.AsSlice())
		copy(ping[16:], kernel4.AsSlice())
		if err := e.WritePacket(ping); err != nil {
			t.Fatal(err)
		}
		<-replies
		for _, bad := range [][]byte{nil, ping[:19], append(ping, 0), make([]byte, maxPacket+1)} {
			if err := e.WritePacket(bad); !errors.Is(err, ErrMalformed) {
				t.Errorf("WritePacket of %d bytes: %v, want %v", len(bad), err, ErrMalformed)
			}
		}
		e.Close()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOneEndpointPerDevice(t *testing.T) {
	if !inNetns(t) {
		return
	}
	d := openDevice(t, Options{})
	newTestEndpoint(t, d, EndpointOptions{})
	if _, err := NewEndpoint(d, EndpointOptions{}); !errors.Is(err, ErrInUse) {
		t.Errorf("second NewEndpoint: %v, want %v", err, ErrInUse)
	}
}

// TestWrongChecksumIsNotDelivered writes a packet with a wrong TCP checksum into the
// device by a raw socket; nothing may take it for verified.
func TestWrongChecksumIsNotDelivered(t *testing.T) {
	if !inNetns(t) {
		return
	}
	for _, noOffload := range []bool{false, true} {
		d := openDevice(t, Options{NoOffload: noOffload})
		e := newTestEndpoint(t, d, EndpointOptions{})
		s := newNetstack(t, e, netstack4)
		netstackListen(t, s, netip.AddrPortFrom(netstack4, 80))
		before := tcpCounter(t, "InSegs")
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			t.Fatal(err)
		}
		p := tcpPacket4(&tcpFields{flags: uint8(header.TCPFlagSyn)}, 0)
		copy(p[12:], kernel4.AsSlice())
		copy(p[16:], netstack4.AsSlice())
		if err := fixChecksums(p); err != nil {
			t.Fatal(err)
		}
		p[36]++ // TCP's checksum
		if err := unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: netstack4.As4()}); err != nil {
			t.Fatal(err)
		}
		p[36]--
		if err := unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: netstack4.As4()}); err != nil {
			t.Fatal(err)
		}
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
		// Both have been looked at when the answer to the second is there.
		for tcpCounter(t, "InSegs") == before {
			runtime.Gosched()
		}
		if n := s.Stats().TCP.ChecksumErrors.Value(); n != 1 {
			t.Errorf("netstack counted %d wrong checksums, want 1", n)
		}
		e.Close()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWritesAllocateNothing(t *testing.T) {
	if !inNetns(t) {
		return
	}
	d := openDevice(t, Options{})
	e := newTestEndpoint(t, d, EndpointOptions{})
	pkt := superSegment(60000)
	defer pkt.DecRef()
	var list stack.PacketBufferList
	list.PushBack(pkt)
	// The reader allocates for the kernel's answers, at times of its own: what counts is
	// the quietest of several runs.
	least := math.Inf(1)
	for range 20 {
		least = min(least, testing.AllocsPerRun(100, func() {
			if _, err := e.WritePackets(list); err != nil {
				t.Error(err)
			}
		}))
		if least < 1 {
			break
		}
	}
	if least >= 1 {
		t.Errorf("%v allocations per super-segment written, want none", least)
	}
	if st := e.Stats(); st.OutSuperSegments < 100 {
		t.Errorf("%+v, want super-segments", st)
	}
}

// superSegment is a TCP super-segment from netstack to the kernel as netstack's TCP
// would hand it down, for a connection that does not exist.
func superSegment(payload int) *stack.PacketBuffer {
	raw := tcpPacket4(nil, payload)
	copy(raw[12:], netstack4.AsSlice())
	copy(raw[16:], kernel4.AsSlice())
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: 60, Payload: buffer.MakeWithData(raw[40:])})
	copy(pkt.TransportHeader().Push(20), raw[20:40])
	copy(pkt.NetworkHeader().Push(20), raw[:20])
	ip := header.IPv4(pkt.NetworkHeader().Slice())
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	header.TCP(pkt.TransportHeader().Slice()).SetChecksum(
		header.PseudoHeaderChecksum(header.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(20+payload)))
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	pkt.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, CsumOffset: 16, MSS: 1448, L3HdrLen: 20, MaxSize: maxPacket}
	return pkt
}

func TestReattach(t *testing.T) {
	if !inNetns(t) {
		return
	}
	d := openDevice(t, Options{})
	e := newTestEndpoint(t, d, EndpointOptions{})
	got := make(dispatcher, 100)
	for range 3 {
		e.Attach(got)
		if !e.IsAttached() {
			t.Error("not attached after Attach")
		}
		ping := ping4(t)
		copy(ping[12:], netstack4.AsSlice())
		copy(ping[16:], kernel4.AsSlice())
		if err := e.WritePacket(ping); err != nil {
			t.Fatal(err)
		}
		<-got
		e.Attach(nil)
		if e.IsAttached() {
			t.Error("attached after Attach(nil)")
		}
	}
	e.Close()
	e.Close()
	if d.Err() != nil {
		t.Errorf("the device is closed with the endpoint: %v", d.Err())
	}
}

// A dispatcher is a stack that only tells of ICMP echo replies.
type dispatcher chan struct{}

func (d dispatcher) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	if b, ok := pkt.Data().PullUp(21); ok && b[9] == protoICMP && b[20] == 0 {
		d <- struct{}{}
	}
}

func (dispatcher) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}
