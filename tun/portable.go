package tun

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// portableHeadroom is what the wireguard package needs in front of a packet, in bytes,
// for the header of whatever system: 4 on the BSDs, 10 on Linux.
const portableHeadroom = 16

// A portable is the carrier over the Read and Write of the wireguard package, which
// cuts the kernel's super-segments into plain ones, and joins plain ones where the
// kernel takes that. Super-segments of netstack are cut here.
type portable struct {
	device *Device
	count  *counters

	writers sync.Pool // of *portableWriter

	// What follows belongs to receive.
	bufs  [][]byte
	sizes []int
	back  *portableWriter // for bypassed packets
}

func newPortable(d *Device, c *counters) *portable {
	p := &portable{device: d, count: c}
	p.bufs = make([][]byte, d.dev.BatchSize())
	p.sizes = make([]int, len(p.bufs))
	for i := range p.bufs {
		p.bufs[i] = make([]byte, portableHeadroom+maxPacket)
	}
	p.writers.New = func() any { return new(portableWriter) }
	p.back = new(portableWriter)
	return p
}

func (p *portable) resume() {
	if f := p.device.dev.File(); f != nil {
		_ = f.SetReadDeadline(time.Time{})
	}
}

// interrupt closes the device where there is no file to set a deadline on.
func (p *portable) interrupt() {
	f := p.device.dev.File()
	if f != nil && f.SetReadDeadline(time.Unix(1, 0)) == nil {
		return
	}
	p.device.gone(ErrClosed)
	_ = p.device.dev.Close()
}

func (p *portable) receive(in *inbox) error {
	n, err := p.device.dev.Read(p.bufs, p.sizes, portableHeadroom)
	for i := range n {
		p.accept(in, p.bufs[i][portableHeadroom:][:p.sizes[i]])
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errStopped
	case p.device.closing():
		return ErrClosed
	case errors.Is(err, os.ErrClosed): // what the wireguard package makes of a device that was deleted
		return ErrDeleted
	case errors.As(err, new(syscall.Errno)):
		return err
	default: // a packet that the wireguard package cannot make sense of, or has cut into too many
		p.count.dropMalformed.Add(1)
		return nil
	}
}

func (p *portable) accept(in *inbox, packet []byte) {
	p.count.inPackets.Add(1)
	p.count.inBytes.Add(uint64(len(packet)))
	l, _, r := vnetHeader{}.inbound(packet, len(packet))
	if r != accepted {
		p.count.refused(r)
		return
	}
	if in.bypass(packet[:min(len(packet), BypassPrefix)]) {
		p.count.inBypassed.Add(1)
		p.back.reset()
		p.back.add(packet, nil)
		_ = p.write(p.back) // receive will see that it is closed
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
	pkt.NetworkProtocolNumber = l.networkProtocol()
	in.packets = append(in.packets, received{pkt: pkt})
}

func (p *portable) send(pkts []*stack.PacketBuffer) error {
	w := p.writers.Get().(*portableWriter)
	defer p.writers.Put(w)
	for _, pkt := range pkts {
		if err := p.sendOne(w, pkt); err != nil {
			return err
		}
	}
	return nil
}

func (p *portable) sendOne(w *portableWriter, pkt *stack.PacketBuffer) error {
	size := pkt.Size()
	if size > maxPacket {
		p.count.dropUnsupported.Add(1)
		return nil
	}
	w.flatten(pkt)
	netLen := len(pkt.NetworkHeader().Slice())
	transportLen := len(pkt.TransportHeader().Slice())
	h := outboundHeader(pkt.GSOOptions, netLen, transportLen, size-netLen-transportLen)
	if h.superSegment() {
		return p.sendSegments(w, int(h.gsoSize))
	}
	if h.flags&vnetNeedsChecksum != 0 && fixChecksums(w.flat) != nil {
		p.count.dropUnsupported.Add(1)
		return nil
	}
	w.reset()
	w.add(w.flat, nil)
	return p.write(w)
}

// sendSegments sends the super-segment in w.flat in pieces. All at once, so that the
// wireguard package may join them for the kernel; if the kernel refuses what comes of
// that, one by one. Should it have refused but a part, TCP gets the others twice.
func (p *portable) sendSegments(w *portableWriter, mss int) error {
	segments, err := w.seg.segments(w.flat, mss)
	if err != nil {
		p.count.dropUnsupported.Add(1)
		return nil
	}
	w.reset()
	for hdr, payload := range segments {
		w.add(hdr, payload)
	}
	p.count.outSegments.Add(uint64(len(w.bufs)))
	err = p.tryWrite(w)
	if !refusedOffload(err) {
		return p.written(err, w)
	}
	p.count.fallbacks.Add(1)
	for hdr, payload := range segments {
		w.reset()
		w.add(hdr, payload)
		if err := p.write(w); err != nil {
			return err
		}
	}
	return nil
}

func (p *portable) sendRaw(packet []byte) error {
	w := p.writers.Get().(*portableWriter)
	defer p.writers.Put(w)
	w.reset()
	w.add(packet, nil)
	return p.write(w)
}

// write gives what w has gathered to the device.
func (p *portable) write(w *portableWriter) error { return p.written(p.tryWrite(w), w) }

func (p *portable) tryWrite(w *portableWriter) error {
	w.bytes = 0
	for _, b := range w.bufs {
		w.bytes += len(b) - portableHeadroom
	}
	_, err := p.device.dev.Write(w.bufs, portableHeadroom)
	return err
}

// written counts the packets of w, or what became of them.
func (p *portable) written(err error, w *portableWriter) error {
	packets := uint64(len(w.bufs))
	switch {
	case err == nil:
		p.count.outPackets.Add(packets)
		p.count.outBytes.Add(uint64(w.bytes))
	case p.device.closing():
		return ErrClosed
	case errors.Is(err, os.ErrClosed):
		p.device.gone(ErrDeleted)
		return ErrClosed
	case deviceDown(err):
		p.count.dropDown.Add(packets)
		p.device.sawDown()
	default:
		p.count.dropRefused.Add(packets)
	}
	return nil
}

func (*portable) release() {}

// A portableWriter is the scratch of one send.
type portableWriter struct {
	flat  []byte   // one packet of netstack's
	bufs  [][]byte // packets for the wireguard package, with headroom; those beyond len are kept for later
	bytes int      // in bufs, at the last write and before it joined any
	seg   segmenter
}

func (w *portableWriter) flatten(pkt *stack.PacketBuffer) {
	w.flat = w.flat[:0]
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		n := min(skip, len(b))
		w.flat = append(w.flat, b[n:]...)
		skip -= n
	}
}

func (w *portableWriter) reset() { w.bufs = w.bufs[:0] }

// add copies a packet, in two parts, behind the others. The first buffer has room for
// a whole super-segment: the wireguard package joins the others to it, in place.
func (w *portableWriter) add(hdr, payload []byte) {
	i := len(w.bufs)
	if i < cap(w.bufs) {
		w.bufs = w.bufs[:i+1]
	} else {
		w.bufs = append(w.bufs, nil)
	}
	b := w.bufs[i]
	if i == 0 && b == nil {
		b = make([]byte, 0, portableHeadroom+maxPacket)
	}
	var headroom [portableHeadroom]byte
	b = append(b[:0], headroom[:]...)
	b = append(b, hdr...)
	w.bufs[i] = append(b, payload...)
}
