//go:build linux

package routing

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

// A tunDevice is the device with a test behind it.
type tunDevice struct {
	t       *testing.T
	name    string
	file    *os.File
	packets chan gopacket.Packet
	ended   chan struct{}
}

func openTUN(t *testing.T, name string) *tunDevice {
	t.Helper()
	path := os.Getenv(tunPathMarker)
	if path == "" {
		path = "/dev/net/tun"
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
	d := &tunDevice{t, name, os.NewFile(uintptr(fd), path), make(chan gopacket.Packet, 1024), nil}
	t.Cleanup(d.close)
	return d
}

// read begins to read packets.
func (d *tunDevice) read() {
	ended, packets := make(chan struct{}), d.packets
	d.ended = ended
	go func() {
		defer close(ended)
		defer close(packets)
		buf := make([]byte, 1<<16)
		for {
			n, err := d.file.Read(buf)
			if err != nil {
				return
			}
			if p := parsePacket(buf[:n]); tcpOf(p) != nil { // the kernel speaks multicast there, too
				packets <- p
			}
		}
	}()
}

// close makes the device vanish, as the death of its process does.
func (d *tunDevice) close() {
	_ = d.file.Close()
	if d.ended != nil {
		for range d.packets { // the reader may wait for room
		}
		<-d.ended
		d.ended = nil
	}
}

func parsePacket(b []byte) gopacket.Packet {
	first := layers.LayerTypeIPv4
	if b[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	return gopacket.NewPacket(bytes.Clone(b), first, gopacket.Default)
}

func tcpOf(p gopacket.Packet) *layers.TCP {
	l, _ := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	return l
}

func endsOf(p gopacket.Packet) (src, dst netip.AddrPort) {
	n, l := p.NetworkLayer().NetworkFlow(), tcpOf(p)
	a, _ := netip.AddrFromSlice(n.Src().Raw())
	b, _ := netip.AddrFromSlice(n.Dst().Raw())
	return netip.AddrPortFrom(a, uint16(l.SrcPort)), netip.AddrPortFrom(b, uint16(l.DstPort))
}

func describe(p gopacket.Packet) string {
	src, dst := endsOf(p)
	l := tcpOf(p)
	flags := ""
	for _, f := range []struct {
		set  bool
		name string
	}{{l.SYN, "S"}, {l.FIN, "F"}, {l.RST, "R"}, {l.PSH, "P"}, {l.ACK, "."}} {
		if f.set {
			flags += f.name
		}
	}
	return fmt.Sprintf("%v > %v <%s>", src, dst, flags)
}

func matches(pattern, s string) bool {
	for i, part := range strings.Split(pattern, "*") {
		at := strings.Index(s, part)
		if at < 0 || i == 0 && at > 0 {
			return false
		}
		s = s[at+len(part):]
	}
	return s == "" || strings.HasSuffix(pattern, "*")
}

// patience is how long a test waits for what must come. Nothing is judged by how long
// it took.
const patience = 5 * time.Second

// want returns the next packet described as pattern, where * stands for anything and
// flags are in angle brackets; others are logged and skipped.
func (d *tunDevice) want(pattern string) gopacket.Packet {
	d.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case p, ok := <-d.packets:
			if !ok {
				d.t.Fatalf("device closed, want %s", pattern)
			}
			if matches(pattern, describe(p)) {
				return p
			}
			d.t.Logf("also in the device: %s", describe(p))
		case <-timeout:
			d.t.Fatalf("nothing in the device like %s", pattern)
		}
	}
}

// none fails if a connection has begun to come.
func (d *tunDevice) none(why string) {
	d.t.Helper()
	for {
		select {
		case p := <-d.packets:
			if tcpOf(p).SYN {
				d.t.Errorf("%s, but in the device: %s", why, describe(p))
			}
		default:
			return
		}
	}
}

// send writes a TCP segment into the host.
func (d *tunDevice) send(src, dst string, flags string, seq, ack uint32) {
	d.t.Helper()
	if _, err := d.file.Write(segment(d.t, src, dst, flags, seq, ack)); err != nil {
		d.t.Fatalf("write to the device: %v", err)
	}
}

func segment(t *testing.T, src, dst, flags string, seq, ack uint32) []byte {
	t.Helper()
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	l := &layers.TCP{SrcPort: layers.TCPPort(s.Port()), DstPort: layers.TCPPort(d.Port()), Seq: seq, Ack: ack, Window: 65535,
		SYN: strings.Contains(flags, "S"), ACK: strings.Contains(flags, "."), RST: strings.Contains(flags, "R"),
		FIN: strings.Contains(flags, "F"), PSH: strings.Contains(flags, "P")}
	var n gopacket.SerializableLayer
	var err error
	if s.Addr().Is4() {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: s.Addr().AsSlice(), DstIP: d.Addr().AsSlice()}
		n, err = ip, l.SetNetworkLayerForChecksum(ip)
	} else {
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: s.Addr().AsSlice(), DstIP: d.Addr().AsSlice()}
		n, err = ip, l.SetNetworkLayerForChecksum(ip)
	}
	if err != nil {
		t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, n, l); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A wiretap sees what comes in by a device of another host.
type wiretap struct {
	t       *testing.T
	file    *os.File
	packets chan gopacket.Packet
}

func (n *netNS) tap(dev string) *wiretap {
	n.t.Helper()
	var fd int
	var err error
	n.do(func() {
		proto := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)))
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto); err != nil {
			return
		}
		var i *net.Interface
		if i, err = net.InterfaceByName(dev); err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(proto), Ifindex: i.Index})
		}
	})
	if err != nil {
		n.t.Fatalf("tap %s in %s: %v", dev, n.name, err)
	}
	w := &wiretap{n.t, os.NewFile(uintptr(fd), dev), make(chan gopacket.Packet, 4096)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 1<<16)
		for {
			k, err := w.file.Read(buf)
			if err != nil {
				return
			}
			if v := buf[0] >> 4; v != 4 && v != 6 {
				continue
			}
			if p := parsePacket(buf[:k]); tcpOf(p) != nil {
				w.packets <- p
			}
		}
	}()
	n.t.Cleanup(func() { _ = w.file.Close(); <-ended })
	return w
}

// until returns what has come before a packet described as pattern.
func (w *wiretap) until(pattern string) (before []string) {
	w.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case p := <-w.packets:
			if matches(pattern, describe(p)) {
				return before
			}
			before = append(before, describe(p))
		case <-timeout:
			w.t.Fatalf("nothing on the wire like %s, but %q", pattern, before)
		}
	}
}
