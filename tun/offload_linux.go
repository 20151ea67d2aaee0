package tun

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A batch ends when the device has nothing more to give, or at one of these. Longer
// batches save wake-ups and acknowledgements, shorter ones let netstack begin.
const (
	maxBatchPackets = 64
	maxBatchBytes   = 256 << 10
)

// viewSizes are the sizes of the buffers that one packet is read into, in bytes: those
// of netstack's pools, so that a packet takes at most about twice its length, nothing
// is copied, and what it leaves unused serves for the next. The first holds all
// headers. The sum is maxPacket and more.
var viewSizes = [...]int{BypassPrefix, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 2 << 10}

// An offload is the carrier of a device whose packets have a virtio-net header.
type offload struct {
	device *Device
	file   *os.File
	rc     syscall.RawConn
	count  *counters
	log    *slog.Logger

	warnOnce sync.Once // the first refused offload
	writers  sync.Pool // of *writer

	// writev is the system call, RawSyscall for choice: the file never blocks, and the
	// scheduler need not know.
	writev func(fd uintptr, iov []unix.Iovec) unix.Errno

	// What follows belongs to receive.
	hdr   [vnetHeaderLen]byte
	views [len(viewSizes)]*buffer.View
	iov   [1 + len(viewSizes)]unix.Iovec // hdr, views
	in    *inbox
	back  *writer // for bypassed packets
	err   error   // why drain gave up
	drain func(fd uintptr) bool
}

func newOffload(d *Device, c *counters, log *slog.Logger) (*offload, error) {
	file := d.dev.File()
	rc, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	o := &offload{device: d, file: file, rc: rc, count: c, log: log, writev: writev}
	o.writers.New = func() any { return o.newWriter() }
	o.back = o.newWriter()
	o.drain = o.readUntilEmpty
	o.iov[0] = iovec(o.hdr[:])
	for i := range o.views {
		o.refill(i)
	}
	return o, nil
}

func (o *offload) refill(i int) {
	o.views[i] = buffer.NewViewSize(viewSizes[i])
	o.iov[1+i] = iovec(o.views[i].AsSlice())
}

func (o *offload) release() {
	for i, v := range o.views {
		v.Release()
		o.views[i], o.iov[1+i] = nil, unix.Iovec{}
	}
}

func iovec(b []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return v
}

func bytesOf(v unix.Iovec) []byte { return unsafe.Slice(v.Base, int(v.Len)) }

func readv(fd uintptr, iov []unix.Iovec) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)))
	return int(n), errno
}

func writev(fd uintptr, iov []unix.Iovec) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)))
	return errno
}

func (o *offload) resume()    { _ = o.file.SetReadDeadline(time.Time{}) }
func (o *offload) interrupt() { _ = o.file.SetReadDeadline(time.Unix(1, 0)) }

func (o *offload) receive(in *inbox) error {
	o.in, o.err = in, nil
	switch err := o.rc.Read(o.drain); {
	case err == nil:
		return o.err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errStopped
	case o.device.closing():
		return ErrClosed
	default: // not pollable: the kernel reports an error on a device that is no more
		return ErrDeleted
	}
}

// readUntilEmpty reads packets until there are none or the batch is full. It returns
// false if the poller is to wait for the first.
func (o *offload) readUntilEmpty(fd uintptr) bool {
	var packets, bytes int
	for packets < maxBatchPackets && bytes < maxBatchBytes {
		n, errno := readv(fd, o.iov[:])
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			o.count.inPackets.Add(uint64(packets))
			o.count.inBytes.Add(uint64(bytes))
			return packets > 0
		default:
			if o.err = errno; deviceDeleted(errno) {
				o.err = ErrDeleted
			}
			return true
		}
		packets++
		bytes += max(0, n-vnetHeaderLen)
		o.accept(fd, n)
	}
	o.count.inPackets.Add(uint64(packets))
	o.count.inBytes.Add(uint64(bytes))
	return true
}

// accept looks at the n bytes, with header, that have just been read, and hands on the
// packet, or writes it back, or drops it.
func (o *offload) accept(fd uintptr, n int) {
	total := n - vnetHeaderLen
	if total <= 0 || total > maxPacket {
		o.count.dropMalformed.Add(1)
		return
	}
	first := o.views[0].AsSlice()
	first = first[:min(total, len(first))]
	h := parseVnetHeader(&o.hdr)
	l, verified, r := h.inbound(first, total)
	if r != accepted {
		o.count.refused(r)
		return
	}
	if h.superSegment() {
		o.count.inSuperSegments.Add(1)
	}
	if o.in.bypass(first) {
		o.count.inBypassed.Add(1)
		o.writeBack(fd, h, total)
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: o.take(total)})
	pkt.NetworkProtocolNumber = l.networkProtocol()
	pkt.RXChecksumValidated = verified
	o.in.packets = append(o.in.packets, received{pkt: pkt, superSegment: h.superSegment()})
}

// take takes the views with the first total bytes away, and puts new ones in their
// place.
func (o *offload) take(total int) buffer.Buffer {
	var b buffer.Buffer
	for i := 0; total > 0; i++ {
		v := o.views[i]
		n := min(total, viewSizes[i])
		v.CapLength(n)
		_ = b.Append(v)
		total -= n
		o.refill(i)
	}
	return b
}

// writeBack writes the packet that has just been read, of total bytes, as it is.
func (o *offload) writeBack(fd uintptr, h vnetHeader, total int) {
	w := o.back
	w.start(h)
	for i := 0; total > 0; i++ {
		n := min(total, viewSizes[i])
		w.add(o.views[i].AsSlice()[:n])
		total -= n
	}
	w.write(fd, h)
}
