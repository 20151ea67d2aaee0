package tun

import (
	"context"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// pipeQueueLen is how many packets one direction of a pipe holds before it drops,
// the tail as a device does. Far above any window used in tests: loss is the hook's
// to make, not an accident.
const pipeQueueLen = 1 << 14

// A Hook stands in the path of one direction of a pipe. It is called for one packet
// at a time, in their order, and returns what goes on instead: nothing to drop it,
// the packet twice to duplicate it, a changed or another one; one that it kept from
// an earlier call makes delay and reordering. (To let go of a packet when no other
// follows, call Inject on the receiving end.)
//
// The packet is a whole IP packet, with GSO one of up to 64 KiB, whose checksums are
// right. It is the hook's to change and keep; what is returned is the pipe's. No lock
// is held: a hook may block, and use the pipe.
type Hook func(packet []byte) [][]byte

// PipeOptions configures a Pipe. The zero value is a plain wire: every packet
// arrives, in order, segmented and with checksums computed by netstack.
type PipeOptions struct {
	AToB, BToA Hook // nil: packets pass as they are

	// GSO lets super-segments of up to 64 KiB cross whole, as on a TUN with offloads.
	GSO bool

	// KeepChecksums hands on what a hook returns with the checksums it has. By default
	// they are computed anew, so that a changed byte is seen by TCP's user and not
	// dropped by TCP.
	KeepChecksums bool
}

// A PipeEnd is one of the two joined ends that Pipe makes, a link endpoint for
// netstack. A test that wants to be the other side itself does not attach a stack
// but calls Send and Receive.
type PipeEnd struct {
	peer *PipeEnd
	opts PipeOptions
	hook Hook // of the direction that ends here

	mtu     atomic.Uint32
	dropped atomic.Uint64
	arrival chan struct{} // capacity 1: something was queued, or the end was closed

	mu         sync.Mutex // guards what follows
	queue      []pipePacket
	closed     bool
	dispatcher stack.NetworkDispatcher
	delivery   *delivery // nil while not attached
	onClose    func()
}

// A pipePacket is a packet on its way: netstack's own buffers, or bytes.
type pipePacket struct {
	buf    buffer.Buffer // when raw is nil
	raw    []byte
	hooked bool // has been through the hook, or goes past it
}

var (
	_ stack.LinkEndpoint = (*PipeEnd)(nil)
	_ stack.GSOEndpoint  = (*PipeEnd)(nil)
)

// Pipe returns two link endpoints, joined in memory, with an MTU of mtu bytes. Each
// end belongs to the stack it is attached to, which closes it when it is destroyed
// or the NIC removed; an end that is never attached is the caller's to close. Packets
// that arrive before a stack is attached wait for it.
//
// The pipe has no timers and talks to no OS. Each direction has one goroutine, from
// Attach to Close, which delivers the packets; so no packet is ever delivered on the
// sender's goroutine, under the sender's locks.
func Pipe(mtu uint32, o PipeOptions) (a, b *PipeEnd) {
	a = &PipeEnd{opts: o, hook: o.BToA, arrival: make(chan struct{}, 1)}
	b = &PipeEnd{opts: o, hook: o.AToB, arrival: make(chan struct{}, 1)}
	a.peer, b.peer = b, a
	a.mtu.Store(mtu)
	b.mtu.Store(mtu)
	return a, b
}

// Dropped returns how many packets on their way to this end were lost to a full
// queue, to a closed end, or to being malformed. What a hook drops is not counted.
func (p *PipeEnd) Dropped() uint64 { return p.dropped.Load() }

// Send sends a copy of a raw IP packet to the other end, through the hook.
func (p *PipeEnd) Send(packet []byte) {
	p.peer.enqueue(pipePacket{raw: append([]byte(nil), packet...)})
}

// Inject puts a copy of a raw IP packet into this end's queue as if it came from the
// other, past the hook and as it is.
func (p *PipeEnd) Inject(packet []byte) {
	p.enqueue(pipePacket{raw: append([]byte(nil), packet...), hooked: true})
}

// Receive returns the next packet that arrives at this end, as raw IP with complete
// checksums, the caller's to keep. It fails with ctx's error, or with ErrClosed
// when the end is closed. Not for an end with a stack attached.
func (p *PipeEnd) Receive(ctx context.Context) ([]byte, error) {
	for {
		if pk, ok := p.pop(); ok {
			out := p.arrived(pk)
			if len(out) == 0 {
				continue
			}
			p.pushFront(out[1:])
			return p.flatten(out[0]), nil
		}
		p.mu.Lock()
		closed := p.closed
		p.mu.Unlock()
		if closed {
			return nil, ErrClosed
		}
		select {
		case <-p.arrival:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (p *PipeEnd) enqueue(pk pipePacket) {
	p.mu.Lock()
	full := p.closed || len(p.queue) >= pipeQueueLen
	if !full {
		p.queue = append(p.queue, pk)
	}
	p.mu.Unlock()
	if full {
		p.drop(pk)
		return
	}
	p.wake()
}

func (p *PipeEnd) drop(pk pipePacket) {
	p.dropped.Add(1)
	pk.buf.Release()
}

func (p *PipeEnd) wake() {
	select {
	case p.arrival <- struct{}{}:
	default:
	}
}

func (p *PipeEnd) pop() (pipePacket, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		return pipePacket{}, false
	}
	pk := p.queue[0]
	p.queue[0] = pipePacket{}
	p.queue = p.queue[1:]
	return pk, true
}

func (p *PipeEnd) pushFront(pks []pipePacket) {
	if len(pks) == 0 {
		return
	}
	p.mu.Lock()
	p.queue = append(pks, p.queue...)
	p.mu.Unlock()
	p.wake()
}

// arrived takes a packet through the hook.
func (p *PipeEnd) arrived(pk pipePacket) []pipePacket {
	if p.hook == nil || pk.hooked {
		return []pipePacket{pk}
	}
	raw := p.flatten(pk)
	if raw == nil {
		return nil
	}
	var out []pipePacket
	for _, r := range p.hook(raw) {
		if len(r) == 0 {
			p.dropped.Add(1)
			continue
		}
		if !p.opts.KeepChecksums {
			r = append([]byte(nil), r...) // the same packet may be there twice, or still be the hook's
			_ = fixChecksums(r)           // a malformed one is for the receiver to refuse
		}
		out = append(out, pipePacket{raw: r, hooked: true})
	}
	return out
}

// flatten returns the packet's bytes. The checksums of one that comes straight from
// netstack may be partial, since it left them to the link; those are completed.
func (p *PipeEnd) flatten(pk pipePacket) []byte {
	if pk.raw != nil {
		return pk.raw
	}
	raw := pk.buf.Flatten()
	pk.buf.Release()
	if err := fixChecksums(raw); err != nil {
		p.dropped.Add(1)
		return nil
	}
	return raw
}

// deliver gives packets to the stack until stopped.
func (p *PipeEnd) deliver(d stack.NetworkDispatcher, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		pk, ok := p.pop()
		if !ok {
			select {
			case <-stop:
				return
			case <-p.arrival:
			}
			continue
		}
		for _, pk := range p.arrived(pk) {
			p.deliverOne(d, pk)
		}
	}
}

func (p *PipeEnd) deliverOne(d stack.NetworkDispatcher, pk pipePacket) {
	if pk.raw != nil {
		pk.buf = buffer.MakeWithData(pk.raw)
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: pk.buf})
	defer pkt.DecRef()
	first, ok := pkt.Data().PullUp(1)
	if !ok {
		p.dropped.Add(1)
		return
	}
	switch first[0] >> 4 {
	case 4:
		pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	case 6:
		pkt.NetworkProtocolNumber = header.IPv6ProtocolNumber
	default:
		p.dropped.Add(1)
		return
	}
	d.DeliverNetworkPacket(pkt.NetworkProtocolNumber, pkt)
}

// WritePackets implements stack.LinkEndpoint: the packets are on their way to the
// other end when it returns. It never blocks.
func (p *PipeEnd) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	p.mu.Lock()
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return 0, &tcpip.ErrClosedForSend{}
	}
	for _, pkt := range pkts.AsSlice() {
		p.peer.enqueue(pipePacket{buf: pkt.ToBuffer()})
	}
	return pkts.Len(), nil
}

// Attach implements stack.LinkEndpoint. Delivery begins; with nil it ends.
func (p *PipeEnd) Attach(d stack.NetworkDispatcher) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dispatcher = d
	if d == nil {
		p.delivery.stop()
		return
	}
	if p.closed {
		return
	}
	p.delivery = p.delivery.next(func(stop <-chan struct{}) { p.deliver(d, stop) })
}

// IsAttached implements stack.LinkEndpoint.
func (p *PipeEnd) IsAttached() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dispatcher != nil
}

// Close ends delivery to this end and returns when its goroutine has gone. What is
// still on its way here is dropped, and so is all that the other end sends from now
// on. It may be called twice, but not from a hook or from a packet's delivery.
func (p *PipeEnd) Close() {
	p.mu.Lock()
	p.closed = true
	queue, onClose, del := p.queue, p.onClose, p.delivery
	p.queue, p.onClose = nil, nil
	p.mu.Unlock()
	p.wake()
	for _, pk := range queue {
		p.drop(pk)
	}
	del.stop()
	del.wait()
	if onClose != nil {
		onClose()
	}
}

// Wait implements stack.LinkEndpoint and does nothing: netstack calls it under a lock
// that a packet's delivery may need. Close, which it calls without, waits.
func (p *PipeEnd) Wait() {}

// MTU implements stack.LinkEndpoint, in bytes.
func (p *PipeEnd) MTU() uint32 { return p.mtu.Load() }

// SetMTU implements stack.LinkEndpoint. It is the MTU of this end alone, in bytes.
func (p *PipeEnd) SetMTU(mtu uint32) { p.mtu.Store(mtu) }

// Capabilities implements stack.LinkEndpoint. With GSO checksums arrive partial, and
// memory does not flip bits.
func (p *PipeEnd) Capabilities() stack.LinkEndpointCapabilities {
	if p.opts.GSO && (p.hook == nil || !p.opts.KeepChecksums) {
		return stack.CapabilityRXChecksumOffload
	}
	return 0
}

// GSOMaxSize implements stack.GSOEndpoint, in bytes.
func (*PipeEnd) GSOMaxSize() uint32 { return maxPacket }

// SupportedGSO implements stack.GSOEndpoint.
func (p *PipeEnd) SupportedGSO() stack.SupportedGSO {
	if p.opts.GSO {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

// SetOnCloseAction implements stack.LinkEndpoint.
func (p *PipeEnd) SetOnCloseAction(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onClose = f
}

// ARPHardwareType implements stack.LinkEndpoint.
func (*PipeEnd) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// MaxHeaderLength implements stack.LinkEndpoint: there is no link header.
func (*PipeEnd) MaxHeaderLength() uint16 { return 0 }

// LinkAddress implements stack.LinkEndpoint: there is none.
func (*PipeEnd) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress implements stack.LinkEndpoint and does nothing.
func (*PipeEnd) SetLinkAddress(tcpip.LinkAddress) {}

// AddHeader implements stack.LinkEndpoint and does nothing.
func (*PipeEnd) AddHeader(*stack.PacketBuffer) {}

// ParseHeader implements stack.LinkEndpoint and does nothing.
func (*PipeEnd) ParseHeader(*stack.PacketBuffer) bool { return true }
