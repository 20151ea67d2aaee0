package tun

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/stack/gro"
)

// BypassPrefix is how much of a packet EndpointOptions.Bypass is shown, in bytes: the
// IP and TCP headers with all options fit.
const BypassPrefix = 256

// EndpointOptions configures an Endpoint. The zero value is fine.
type EndpointOptions struct {
	// Bypass is called for each packet that is read and makes sense, before netstack sees
	// it. If it returns true the packet goes back to the kernel, unchanged and with what
	// was left undone in it still undone. packet is its beginning, at most BypassPrefix
	// bytes, and lent for the call. It is called from one goroutine. nil: never.
	Bypass func(packet []byte) bool

	// Log receives a line when the kernel first refuses an offload. nil: the device's.
	Log *slog.Logger
}

// An Endpoint is a TUN device as a link endpoint of netstack. One goroutine, from
// Attach to Close, reads the device and delivers packets; writes happen on the
// goroutine that sends, several at once if several send.
//
// Packets of one WritePackets leave in order. Two calls at the same time have none,
// so who calls for one flow must do it one call after the other: netstack's TCP does,
// under its endpoint's lock.
type Endpoint struct {
	device  *Device
	carrier carrier
	bypass  func(packet []byte) bool
	count   counters
	mtu     atomic.Uint32

	// verified is whether the packet being delivered needs no look at its checksum.
	// netstack asks for that packet by packet, but of the endpoint (Capabilities).
	verified atomic.Bool

	mu         sync.Mutex // guards what follows
	closed     bool
	dispatcher stack.NetworkDispatcher
	delivery   *delivery // nil while not attached
	onClose    func()

	release sync.Once
}

var (
	_ stack.LinkEndpoint = (*Endpoint)(nil)
	_ stack.GSOEndpoint  = (*Endpoint)(nil)
)

// A carrier moves packets between the device's file and netstack's buffers.
type carrier interface {
	// receive waits for packets and puts them into in, which is empty; not all that is
	// read need end up there. Only one call at a time. It returns errStopped after
	// interrupt, ErrClosed or ErrDeleted when the device is, and any other error when it is
	// of no more use.
	receive(in *inbox) error

	// resume makes receive wait again, interrupt makes it return, now or when it is next
	// called.
	resume()
	interrupt()

	// send writes netstack's packets, which remain the caller's. A packet that the
	// kernel does not take is counted and lost, as on any wire; an error means that none
	// of the rest was written. Safe for concurrent use.
	send(pkts []*stack.PacketBuffer) error

	// sendRaw writes one whole packet. Safe for concurrent use.
	sendRaw(packet []byte) error

	// release frees the buffers of receive, which is not called again.
	release()
}

// errStopped is what receive returns after interrupt.
var errStopped = errors.New("tun: stopped")

// An inbox is what was read in one go.
type inbox struct {
	bypass  func(packet []byte) bool // never nil
	packets []received
}

// A received packet is netstack's, with NetworkProtocolNumber set, and
// RXChecksumValidated as NetworkDispatcher will not take it from there.
type received struct {
	pkt          *stack.PacketBuffer
	superSegment bool
}

// NewEndpoint makes d a link endpoint. It reads nothing until a stack is attached,
// which creating a NIC with it does. The caller closes it, or the stack that it is
// attached to. That leaves the device open, but on systems where a read cannot be
// interrupted otherwise (Windows).
func NewEndpoint(d *Device, o EndpointOptions) (*Endpoint, error) {
	if d.claimed.Swap(true) {
		return nil, ErrInUse
	}
	mtu, err := d.MTU()
	if err != nil {
		return nil, fmt.Errorf("MTU of %s: %w", d.name, err)
	}
	e := &Endpoint{device: d, bypass: o.Bypass}
	if e.bypass == nil {
		e.bypass = func([]byte) bool { return false }
	}
	e.mtu.Store(uint32(mtu))
	if o.Log == nil {
		o.Log = d.log
	}
	if e.carrier, err = newCarrier(d, &e.count, o.Log); err != nil {
		return nil, err
	}
	return e, nil
}

// Stats returns the counters.
func (e *Endpoint) Stats() Stats { return e.count.snapshot() }

// WritePacket writes one raw IP packet to the device, that is to the kernel. It must
// be complete, checksums included, and remains the caller's. ErrMalformed: it is not
// an IP packet. A packet that the kernel does not take is counted and lost.
func (e *Endpoint) WritePacket(packet []byte) error {
	if len(packet) > maxPacket {
		return ErrMalformed
	}
	if l, err := parseLayout(packet, len(packet)); err != nil || l.length != len(packet) {
		return ErrMalformed
	}
	return e.carrier.sendRaw(packet)
}

// WritePackets implements stack.LinkEndpoint.
func (e *Endpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	if err := e.carrier.send(pkts.AsSlice()); err != nil {
		return 0, &tcpip.ErrClosedForSend{}
	}
	return pkts.Len(), nil
}

// Attach implements stack.LinkEndpoint. The device is read from now on; with nil it
// no longer is.
func (e *Endpoint) Attach(d stack.NetworkDispatcher) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dispatcher = d
	if d == nil {
		e.stopLocked()
		return
	}
	if e.closed {
		return
	}
	e.stopLocked()
	e.delivery = e.delivery.next(func(stop <-chan struct{}) { e.deliver(d, stop) })
}

func (e *Endpoint) stopLocked() {
	if e.delivery != nil {
		e.delivery.stop()
		e.carrier.interrupt()
	}
}

// deliver reads the device and feeds the stack, until stopped or the device is gone.
func (e *Endpoint) deliver(d stack.NetworkDispatcher, stop <-chan struct{}) {
	e.carrier.resume() // before looking at stop: interrupt comes after that was closed
	in := inbox{bypass: e.bypass}
	to := sorter{e: e, d: d}
	to.gro.Init(true)
	to.gro.Dispatcher = &to
	for {
		select {
		case <-stop:
			return
		default:
		}
		err := e.carrier.receive(&in)
		to.deliver(in.packets)
		clear(in.packets)
		in.packets = in.packets[:0]
		if err != nil && !errors.Is(err, errStopped) {
			e.device.gone(err)
			return
		}
	}
}

// A sorter delivers packets to netstack, plain TCP segments of one batch merged where
// they follow each other. What comes as a super-segment is that already.
type sorter struct {
	e   *Endpoint
	d   stack.NetworkDispatcher
	gro gro.GRO
}

// deliver delivers a batch and lets go of it.
func (s *sorter) deliver(batch []received) {
	merge := false // something may be waiting in gro
	for i, r := range batch {
		switch {
		case r.superSegment || len(batch) == 1:
			if merge { // it may belong to the same flow as what waits
				s.gro.Flush()
				merge = false
			}
			s.DeliverNetworkPacket(r.pkt.NetworkProtocolNumber, r.pkt)
		default:
			s.gro.Enqueue(r.pkt)
			merge = true
		}
		batch[i].pkt.DecRef()
	}
	if merge {
		s.gro.Flush()
	}
}

// DeliverNetworkPacket implements stack.NetworkDispatcher, for gro.
func (s *sorter) DeliverNetworkPacket(proto tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	s.e.verified.Store(pkt.RXChecksumValidated)
	s.e.count.inDelivered.Add(1)
	s.d.DeliverNetworkPacket(proto, pkt)
}

// DeliverLinkPacket implements stack.NetworkDispatcher. There is no link header.
func (*sorter) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// IsAttached implements stack.LinkEndpoint.
func (e *Endpoint) IsAttached() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.dispatcher != nil
}

// Close stops reading and returns when the goroutine that reads has gone. netstack
// calls it when the NIC is removed or the stack destroyed. It may be called twice,
// but not from Bypass or from a packet's delivery. The device remains open.
func (e *Endpoint) Close() {
	e.mu.Lock()
	e.closed = true
	onClose, del := e.onClose, e.delivery
	e.onClose = nil
	e.stopLocked()
	e.mu.Unlock()
	del.wait()
	e.release.Do(e.carrier.release)
	if onClose != nil {
		onClose()
	}
}

// Wait implements stack.LinkEndpoint and does nothing: netstack calls it under a lock
// that a packet's delivery may need. Close, which it calls without, waits.
func (e *Endpoint) Wait() {}

// MTU implements stack.LinkEndpoint, in bytes. It is the device's at NewEndpoint, or
// what SetMTU has made it.
func (e *Endpoint) MTU() uint32 { return e.mtu.Load() }

// SetMTU implements stack.LinkEndpoint. The device keeps its own.
func (e *Endpoint) SetMTU(mtu uint32) { e.mtu.Store(mtu) }

// Capabilities implements stack.LinkEndpoint. Checksums of TCP are left to the kernel
// by way of each packet's GSO options; the few other packets netstack sums itself.
// For packets from the kernel the answer changes from one to the next.
func (e *Endpoint) Capabilities() stack.LinkEndpointCapabilities {
	if e.verified.Load() {
		return stack.CapabilityRXChecksumOffload
	}
	return 0
}

// GSOMaxSize implements stack.GSOEndpoint, in bytes.
func (*Endpoint) GSOMaxSize() uint32 { return maxPacket }

// SupportedGSO implements stack.GSOEndpoint. Where the kernel does not cut
// super-segments the carrier does.
func (*Endpoint) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// SetOnCloseAction implements stack.LinkEndpoint.
func (e *Endpoint) SetOnCloseAction(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.onClose = f
}

// ARPHardwareType implements stack.LinkEndpoint.
func (*Endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// MaxHeaderLength implements stack.LinkEndpoint: the virtio-net header is not in the
// packet's buffer.
func (*Endpoint) MaxHeaderLength() uint16 { return 0 }

// LinkAddress implements stack.LinkEndpoint: there is none.
func (*Endpoint) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress implements stack.LinkEndpoint and does nothing.
func (*Endpoint) SetLinkAddress(tcpip.LinkAddress) {}

// AddHeader implements stack.LinkEndpoint and does nothing.
func (*Endpoint) AddHeader(*stack.PacketBuffer) {}

// ParseHeader implements stack.LinkEndpoint and does nothing.
func (*Endpoint) ParseHeader(*stack.PacketBuffer) bool { return true }
