package tun

import (
	"log/slog"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const maxIovecs = 1024 // UIO_MAXIOV: writev takes no more

// A writer writes packets, one at a time, with all scratch that needs; so the
// goroutines that send at the same time have one each.
type writer struct {
	o   *offload
	hdr [vnetHeaderLen]byte
	iov []unix.Iovec // the virtio-net header, then the packet

	// flat and seg are for packets that need more than to be handed on.
	flat []byte
	seg  segmenter

	// The arguments of run, which is made once so that a call allocates nothing.
	pkts []*stack.PacketBuffer
	raw  []byte
	gone bool // the device is
	run  func(fd uintptr)
}

func (o *offload) newWriter() *writer {
	w := &writer{o: o, iov: make([]unix.Iovec, 0, 32)}
	w.run = w.writeAll
	return w
}

func (o *offload) send(pkts []*stack.PacketBuffer) error { return o.do(pkts, nil) }

func (o *offload) sendRaw(packet []byte) error { return o.do(nil, packet) }

func (o *offload) do(pkts []*stack.PacketBuffer, raw []byte) error {
	w := o.writers.Get().(*writer)
	w.pkts, w.raw, w.gone = pkts, raw, false
	err := o.rc.Control(w.run) // keeps the descriptor from being closed and used again
	gone := w.gone
	w.pkts, w.raw = nil, nil
	o.writers.Put(w)
	if err != nil || gone {
		return ErrClosed
	}
	return nil
}

func (w *writer) writeAll(fd uintptr) {
	if w.raw != nil {
		w.start(vnetHeader{})
		w.add(w.raw)
		w.write(fd, vnetHeader{})
	}
	for _, pkt := range w.pkts {
		if w.gone {
			return
		}
		w.writePacket(fd, pkt)
	}
}

func (w *writer) writePacket(fd uintptr, pkt *stack.PacketBuffer) {
	size := pkt.Size()
	if size > maxPacket {
		w.o.count.dropUnsupported.Add(1)
		return
	}
	netLen := len(pkt.NetworkHeader().Slice())
	transportLen := len(pkt.TransportHeader().Slice())
	h := outboundHeader(pkt.GSOOptions, netLen, transportLen, size-netLen-transportLen)
	w.start(h)
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		w.add(b[skip:])
		skip = 0
	}
	w.write(fd, h)
}

// start begins a packet.
func (w *writer) start(h vnetHeader) {
	h.put(&w.hdr)
	w.iov = append(w.iov[:0], iovec(w.hdr[:]))
}

// add appends to the packet; b is kept until the packet is written.
func (w *writer) add(b []byte) {
	if len(b) > 0 {
		w.iov = append(w.iov, iovec(b))
	}
}

// write writes the packet that start and add have gathered.
func (w *writer) write(fd uintptr, h vnetHeader) {
	defer clear(w.iov[1:]) // no memory of others is kept alive
	if len(w.iov) > maxIovecs {
		w.flatten()
		w.iov = append(w.iov[:1], iovec(w.flat))
	}
	size, count := w.size(), w.o.count
	switch errno := w.o.writev(fd, w.iov); {
	case errno == 0:
		count.outPackets.Add(1)
		count.outBytes.Add(uint64(size))
		if h.superSegment() {
			count.outSuperSegments.Add(1)
		}
	case errno == unix.EINVAL && h != vnetHeader{}:
		w.fallBack(fd, h)
	default:
		w.lost(errno)
	}
}

// fallBack writes the gathered packet with nothing left undone, since the kernel has
// refused to do it. Some kernels do of a super-segment with a short tail.
func (w *writer) fallBack(fd uintptr, h vnetHeader) {
	w.o.count.fallbacks.Add(1)
	w.o.warnOnce.Do(func() {
		w.o.log.Warn("the kernel refused a packet with offloads, sent in plain segments; counted from now on",
			slog.String("device", w.o.device.name), slog.Int("bytes", w.size()), slog.Int("segment", int(h.gsoSize)))
	})
	w.flatten()
	if !h.superSegment() {
		if fixChecksums(w.flat) != nil {
			w.lost(unix.EINVAL)
			return
		}
		w.writePlain(fd, w.flat, nil)
		return
	}
	segments, err := w.seg.segments(w.flat, int(h.gsoSize))
	if err != nil {
		w.lost(unix.EINVAL)
		return
	}
	for hdr, payload := range segments {
		if w.writePlain(fd, hdr, payload); w.gone {
			return
		}
		w.o.count.outSegments.Add(1)
	}
}

// writePlain writes one packet, in two parts, with nothing left undone.
func (w *writer) writePlain(fd uintptr, hdr, payload []byte) {
	w.start(vnetHeader{})
	w.add(hdr)
	w.add(payload)
	if errno := w.o.writev(fd, w.iov); errno != 0 {
		w.lost(errno)
		return
	}
	w.o.count.outPackets.Add(1)
	w.o.count.outBytes.Add(uint64(len(hdr) + len(payload)))
}

// size is the length of the gathered packet, in bytes.
func (w *writer) size() int {
	n := 0
	for _, v := range w.iov[1:] {
		n += int(v.Len)
	}
	return n
}

// flatten copies the gathered packet to flat.
func (w *writer) flatten() {
	w.flat = w.flat[:0]
	for _, v := range w.iov[1:] {
		w.flat = append(w.flat, bytesOf(v)...)
	}
}

// lost counts a packet that the kernel did not take.
func (w *writer) lost(errno unix.Errno) {
	switch {
	case deviceDeleted(errno):
		w.gone = true
		w.o.device.gone(ErrDeleted)
	case deviceDown(errno):
		w.o.count.dropDown.Add(1)
		w.o.device.sawDown()
	case errno == unix.ENOBUFS, errno == unix.ENOMEM, errno == unix.EAGAIN:
		w.o.count.dropNoBuffers.Add(1)
	default:
		w.o.count.dropRefused.Add(1)
	}
}
