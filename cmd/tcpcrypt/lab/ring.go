package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	ringBlockSize = 1 << 20               // bytes; a super-segment of 64 KiB takes a sixteenth
	ringBlocks    = 32                    // 32 MiB: the time a disk may hesitate while a fast stream goes on
	ringRetire    = 20 * time.Millisecond // a block with packets in it is handed over at the latest then
	ringVersion3  = 2                     // TPACKET_V3 of linux/if_packet.h
)

// A ring is a packet socket whose packets the kernel writes into memory shared with us
// (packet_mmap.rst in the kernel's documentation, version 3). Unlike reading them one
// by one, it keeps up with super-segments at several gigabits per second.
//
//	ring:  | block | block | ... |          ringBlocks of them, filled in turn
//	block: | status, count | packet | packet | ... |
//	                       each: | Tpacket3Hdr ... | frame |
type ring struct {
	file   *os.File // the socket, in the runtime's poller
	memory []byte
	next   int // the block to be handed over next
}

// openRing captures everything on an interface of the calling thread's network
// namespace, from now on.
func openRing(ifname string) (*ring, error) {
	dev, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, err
	}
	// Protocol 0 receives nothing until bind says what and where.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	r := &ring{file: os.NewFile(uintptr(fd), "capture of "+ifname)}
	if err := r.open(fd, dev.Index); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *ring) open(fd, ifindex int) (err error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, ringVersion3); err != nil {
		return os.NewSyscallError("setsockopt PACKET_VERSION", err)
	}
	layout := unix.TpacketReq3{
		Block_size:     ringBlockSize,
		Block_nr:       ringBlocks,
		Frame_size:     1 << 11, // of no meaning in version 3, but checked against the others
		Frame_nr:       ringBlocks * (ringBlockSize >> 11),
		Retire_blk_tov: uint32(ringRetire / time.Millisecond),
	}
	if err := unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &layout); err != nil {
		return os.NewSyscallError("setsockopt PACKET_RX_RING", err)
	}
	r.memory, err = unix.Mmap(fd, 0, ringBlockSize*ringBlocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian16(unix.ETH_P_ALL), Ifindex: ifindex})
	return os.NewSyscallError("bind", err)
}

// bigEndian16 is v as the kernel's be16 lies in this machine's memory.
func bigEndian16(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// A packet is a captured frame.
type packet struct {
	at     time.Time
	length int    // bytes on the wire
	data   []byte // what was captured of it, all unless the ring was short; borrowed
}

// read waits for a block and gives each packet in it to f, which borrows the data for
// the call. It returns os.ErrDeadlineExceeded after setDeadline's time.
func (r *ring) read(f func(packet) error) error {
	block := r.memory[r.next*ringBlockSize:][:ringBlockSize]
	header := (*unix.TpacketHdrV1)(unsafe.Pointer(&block[unsafe.Offsetof(unix.TpacketBlockDesc{}.Hdr)]))
	raw, err := r.file.SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Read(func(uintptr) bool {
		return atomic.LoadUint32(&header.Block_status)&unix.TP_STATUS_USER != 0
	})
	if err != nil {
		return err
	}
	offset := header.Offset_to_first_pkt
	for range header.Num_pkts {
		h := (*unix.Tpacket3Hdr)(unsafe.Pointer(&block[offset]))
		data := block[offset+uint32(h.Mac):][:h.Snaplen:h.Snaplen]
		if err := f(packet{at: time.Unix(int64(h.Sec), int64(h.Nsec)), length: int(h.Len), data: data}); err != nil {
			return err
		}
		offset += h.Next_offset
	}
	atomic.StoreUint32(&header.Block_status, unix.TP_STATUS_KERNEL)
	r.next = (r.next + 1) % ringBlocks
	return nil
}

// setDeadline ends a read that waits longer.
func (r *ring) setDeadline(t time.Time) error { return r.file.SetReadDeadline(t) }

// lost returns how many packets found the ring full since the last call.
func (r *ring) lost() (uint64, error) {
	raw, err := r.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var stats *unix.TpacketStatsV3
	var statsErr error
	if err := raw.Control(func(fd uintptr) {
		stats, statsErr = unix.GetsockoptTpacketStatsV3(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); err != nil {
		return 0, err
	}
	if statsErr != nil {
		return 0, os.NewSyscallError("getsockopt PACKET_STATISTICS", statsErr)
	}
	return uint64(stats.Drops), nil
}

// close gives socket and memory back. No read may be running.
func (r *ring) close() error {
	var err error
	if r.memory != nil {
		err = os.NewSyscallError("munmap", unix.Munmap(r.memory))
		r.memory = nil
	}
	return errors.Join(err, r.file.Close())
}

// sendFrame sends one frame out of an interface of the calling thread's namespace.
func sendFrame(ifname string, frame []byte) error {
	dev, err := net.InterfaceByName(ifname)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	err = syscall.Sendto(fd, frame, 0, &syscall.SockaddrLinklayer{Ifindex: dev.Index, Protocol: bigEndian16(markerType)})
	if err != nil {
		err = fmt.Errorf("send on %s: %w", ifname, err)
	}
	return errors.Join(err, unix.Close(fd))
}
