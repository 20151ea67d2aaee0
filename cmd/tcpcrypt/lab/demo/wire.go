package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"

	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/lab"
)

const enoKind = 69 // the TCP option of RFC 8547

// sights is what was seen of the packets to and from one address.
type sights struct {
	synENO, syn       int // SYNs with the option, and all
	synACKENO, synACK int
	otherENO          int // segments without SYN that carry it
	bytes             int // of payload
	markers           int // packets with the marker in them
	http              int // packets with a line of HTTP
}

// A watcher reads a capture as it is made.
type watcher struct {
	file *os.File
	done chan struct{}
	seen map[netip.Addr]*sights
	err  error
}

func newWatcher(fifo string) (*watcher, error) {
	// For reading and writing, or it would wait for the lab, which may never come.
	// close takes away our own claim to write.
	file, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	// A megabyte in flight, if we may: fewer wake-ups while there is work to do.
	_, _ = unix.FcntlInt(file.Fd(), unix.F_SETPIPE_SZ, 1<<20)
	reader, err := os.Open(fifo)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	w := &watcher{file: file, done: make(chan struct{}), seen: make(map[netip.Addr]*sights)}
	go func() {
		defer close(w.done)
		w.err = w.read(reader)
		w.err = errors.Join(w.err, reader.Close())
	}()
	return w, nil
}

// close ends the reading, after the lab has ended, and returns what was seen, by the
// address of the host that is not a.
func (w *watcher) close() (map[netip.Addr]*sights, error) {
	if err := w.file.Close(); err != nil {
		return nil, err
	}
	<-w.done
	return w.seen, w.err
}

func (w *watcher) read(r io.Reader) error {
	ng, err := pcapgo.NewNgReader(bufio.NewReaderSize(r, 1<<20), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		return err
	}
	for {
		frame, _, err := ng.ZeroCopyReadPacketData()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			// Whoever wrote it must not wait for us.
			_, copyErr := io.Copy(io.Discard, r)
			return errors.Join(err, copyErr)
		}
		src, dst, segment := tcpSegment(frame)
		if segment == nil {
			continue
		}
		for _, addr := range []netip.Addr{src, dst} {
			if w.seen[addr] == nil {
				w.seen[addr] = &sights{}
			}
			w.seen[addr].add(segment)
		}
	}
}

// tcpSegment finds TCP in an Ethernet frame; nil if there is none.
func tcpSegment(frame []byte) (src, dst netip.Addr, segment []byte) {
	if len(frame) < 14 {
		return src, dst, nil
	}
	packet := frame[14:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		if len(packet) < 20 || packet[9] != unix.IPPROTO_TCP {
			return src, dst, nil
		}
		header := int(packet[0]&15) * 4
		if header < 20 || header > len(packet) {
			return src, dst, nil
		}
		src, dst = netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
		segment = packet[header:]
	case unix.ETH_P_IPV6:
		if len(packet) < 40 || packet[6] != unix.IPPROTO_TCP {
			return src, dst, nil
		}
		src, dst = netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
		segment = packet[40:]
	}
	if len(segment) < 20 || int(segment[12]>>4)*4 < 20 || int(segment[12]>>4)*4 > len(segment) {
		return src, dst, nil
	}
	return src, dst, segment
}

func (s *sights) add(segment []byte) {
	const synFlag, ackFlag = 0x02, 0x10
	header := int(segment[12]>>4) * 4
	payload := segment[header:]
	eno := 0
	if hasOption(segment[20:header], enoKind) {
		eno = 1
	}
	switch segment[13] & (synFlag | ackFlag) {
	case synFlag:
		s.syn++
		s.synENO += eno
	case synFlag | ackFlag:
		s.synACK++
		s.synACKENO += eno
	default:
		s.otherENO += eno
	}
	s.bytes += len(payload)
	if bytes.Contains(payload, []byte(marker)) {
		s.markers++
	}
	if bytes.Contains(payload, []byte("HTTP/1.1")) {
		s.http++
	}
}

// hasOption looks for a kind among TCP options.
func hasOption(options []byte, kind byte) bool {
	for len(options) > 0 && options[0] != 0 {
		if options[0] == kind {
			return true
		}
		length := 1
		if options[0] != 1 {
			if len(options) < 2 || options[1] < 2 {
				return false
			}
			length = int(options[1])
		}
		options = options[min(length, len(options)):]
	}
	return false
}

// judgeWire checks what was seen of the wire.
func judgeWire(v *verdict, r *lab.Report, seen map[netip.Addr]*sights) {
	for _, c := range r.Captures {
		if c.Host == "a" {
			v.check(c.Lost == 0 && c.Packets > 0, "the wire of a was captured whole: %d packets, %d lost", c.Packets, c.Lost)
		}
	}
	total := make(map[string]sights)
	for _, h := range r.Hosts {
		var t sights
		for _, addr := range h.Addresses {
			if s := seen[addr]; s != nil {
				t.syn, t.synENO = t.syn+s.syn, t.synENO+s.synENO
				t.synACK, t.synACKENO, t.otherENO = t.synACK+s.synACK, t.synACKENO+s.synACKENO, t.otherENO+s.otherENO
				t.bytes, t.markers, t.http = t.bytes+s.bytes, t.markers+s.markers, t.http+s.http
			}
		}
		total[h.Name] = t
	}
	b, c := total["b"], total["c"]
	v.check(b.synENO == b.syn && b.synENO > 0 && b.synACKENO == b.synACK && b.synACKENO > 0 && b.otherENO > 0,
		"ENO (kind 69) in the handshakes with b: %d of %d SYN, %d of %d SYN-ACK, %d ACK", b.synENO, b.syn, b.synACKENO, b.synACK, b.otherENO)
	v.check(b.bytes > 2*dataSize && b.markers == 0 && b.http == 0,
		"no plaintext between a and b: %d MB, %d packets with the marker, %d with HTTP", b.bytes/1e6, b.markers, b.http)
	v.check(c.synENO > 0 && c.synACKENO == 0 && c.synACK > 0,
		"ENO offered to c, which does not answer it: %d of %d SYN, %d of %d SYN-ACK", c.synENO, c.syn, c.synACKENO, c.synACK)
	v.check(c.bytes > 2*dataSize && c.markers > 0 && c.http > 0,
		"plaintext between a and c, as a proof of the search: %d MB, %d packets with the marker, %d with HTTP", c.bytes/1e6, c.markers, c.http)
}
