//go:build linux

package routing

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// These tests need the kernel's TUN, nf_tables and conntrack, and the programs ip
// (iproute2) and nft (nftables) to build hosts and to compare states.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	inNetnsMarker = "TCPCRYPT_TEST_IN_NETNS"
	tunPathMarker = "TCPCRYPT_TEST_TUN" // another path of /dev/net/tun
)

// inNetns reruns the calling top-level test in a child that owns a fresh network
// namespace, and reports true there. The namespace dies with the child. Without root
// it makes a user namespace, too.
func inNetns(t *testing.T) bool {
	t.Helper()
	return inChild(t, os.Getuid() != 0, nil)
}

// inUserNetns does the same in a user namespace, as nobody if we are root.
func inUserNetns(t *testing.T) bool {
	t.Helper()
	if os.Getuid() != 0 || os.Getenv(inNetnsMarker) != "" {
		return inChild(t, true, nil)
	}
	// nobody may not open /dev/net/tun everywhere, so there is another one for it.
	dir := t.TempDir()
	dev := filepath.Join(dir, "tun")
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mknod(dev, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
		t.Fatalf("make %s: %v", dev, err)
	}
	if err := os.Chmod(dev, 0o666); err != nil {
		t.Fatal(err)
	}
	return inChild(t, true, nobodyCredential(), tunPathMarker+"="+dev)
}

func nobodyCredential() *syscall.Credential { return &syscall.Credential{Uid: 65534, Gid: 65534} }

func inChild(t *testing.T, user bool, cred *syscall.Credential, env ...string) bool {
	t.Helper()
	if os.Getenv(inNetnsMarker) == t.Name() {
		run(t, "ip", "link", "set", "lo", "up")
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(append(os.Environ(), inNetnsMarker+"="+t.Name()), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if user {
		uid, gid := os.Getuid(), os.Getgid()
		if cred != nil {
			uid, gid = int(cred.Uid), int(cred.Gid)
		}
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true}
	}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) { // a skip is not a pass
		t.Fatalf("in namespace: %v", err)
	}
	return false
}

func run(t *testing.T, name string, arg ...string) string {
	t.Helper()
	out, err := exec.Command(name, arg...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(arg, " "), err, out)
	}
	return string(out)
}

// A netNS is another host: a network namespace with a thread in it.
type netNS struct {
	name string
	t    *testing.T
	jobs chan func()
	tid  int
}

func newNS(t *testing.T, name string) *netNS {
	t.Helper()
	n := &netNS{name: name, t: t, jobs: make(chan func())}
	ready, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		n.tid = unix.Gettid()
		h, err := netns.New()
		if err == nil {
			err = h.Close()
		}
		ready <- err
		for job := range n.jobs {
			job()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { close(n.jobs); <-ended })
	n.do(func() { run(t, "ip", "link", "set", "lo", "up") })
	return n
}

// do runs f in the namespace. f must not call t.Fatal unless it runs a command.
func (n *netNS) do(f func()) {
	done := make(chan struct{})
	n.jobs <- func() {
		defer close(done)
		f()
	}
	<-done
}

func (n *netNS) ip(arg ...string) { n.do(func() { run(n.t, "ip", arg...) }) }

func (n *netNS) listen(addr string) net.Listener {
	n.t.Helper()
	var l net.Listener
	var err error
	n.do(func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		n.t.Fatalf("listen on %s in %s: %v", addr, n.name, err)
	}
	n.t.Cleanup(func() { _ = l.Close() })
	return l
}

// dial connects in the background; the result comes on the channel.
func dial(t *testing.T, in *netNS, from, to string) <-chan dialled {
	t.Helper()
	ch := make(chan dialled, 1)
	d := &net.Dialer{Timeout: 10 * time.Second}
	if from != "" {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))
	}
	connect := func() {
		c, err := d.DialContext(t.Context(), "tcp", to)
		if c != nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		ch <- dialled{c, err}
	}
	if in == nil {
		go connect()
	} else {
		go in.do(connect)
	}
	return ch
}

type dialled struct {
	net.Conn
	err error
}

// An end is one side of a veth pair; ns is nil for the host under test.
type end struct {
	ns    *netNS
	dev   string
	addrs []string
}

func (e end) ip(t *testing.T, arg ...string) {
	t.Helper()
	if e.ns == nil {
		run(t, "ip", arg...)
	} else {
		e.ns.ip(arg...)
	}
}

// join connects two hosts; the first end must be of the host under test.
func join(t *testing.T, a, b end) {
	t.Helper()
	a.ip(t, "link", "add", a.dev, "type", "veth", "peer", "name", b.dev)
	a.ip(t, "link", "set", b.dev, "netns", fmt.Sprint(b.ns.tid))
	for i, e := range []end{a, b} {
		addrs := e.addrs
		if IPv6() {
			// A link-local address at once: states are compared, and the kernel's takes a second.
			e.ip(t, "link", "set", e.dev, "addrgenmode", "none")
			addrs = append(addrs, fmt.Sprintf("fe80::%d/64", i+1))
		}
		for _, addr := range addrs {
			e.ip(t, "addr", "add", addr, "dev", e.dev, "nodad")
		}
		e.ip(t, "link", "set", e.dev, "up")
	}
	for _, e := range []end{a, b} { // the kernel takes its time to say so, and lists routes as down until then
		eventually(t, e.dev+" is up", func() (up bool) {
			look := func() {
				i, err := net.InterfaceByName(e.dev)
				up = err == nil && i.Flags&net.FlagRunning != 0
			}
			if e.ns == nil {
				look()
			} else {
				e.ns.do(look)
			}
			return up
		})
	}
}

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

// snapshot is all that a stop must restore, as text.
func snapshot(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, cmd := range []string{
		"ip -4 -d rule", "ip -6 -d rule", "ip -4 -d route show table all", "ip -6 -d route show table all",
		"ip addr", "nft list ruleset",
	} {
		w := strings.Fields(cmd)
		fmt.Fprintf(&b, "# %s\n%s", cmd, run(t, w[0], w[1:]...))
	}
	for _, dir := range []string{"/proc/sys/net/ipv4", "/proc/sys/net/ipv6"} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			if v, err := os.ReadFile(path); err == nil && !strings.Contains(path, "nf_conntrack_count") {
				fmt.Fprintf(&b, "%s = %s", path, v)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// sameAs fails with the lines that differ.
func sameAs(t *testing.T, before string) {
	t.Helper()
	was, is := strings.Split(before, "\n"), strings.Split(snapshot(t), "\n")
	count := map[string]int{}
	for _, l := range was {
		count[l]--
	}
	for _, l := range is {
		count[l]++
	}
	for l, n := range count {
		if n < 0 {
			t.Errorf("gone: %s", l)
		} else if n > 0 {
			t.Errorf("new:  %s", l)
		}
	}
}

func testLog(t *testing.T) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// dialBriefly is for connections that ought not to come about; silence is their end.
func dialBriefly(t *testing.T, in *netNS, to string) <-chan dialled {
	t.Helper()
	ch := make(chan dialled, 1)
	go in.do(func() {
		c, err := net.DialTimeout("tcp", to, 300*time.Millisecond)
		if c != nil {
			_ = c.Close()
		}
		ch <- dialled{c, err}
	})
	return ch
}

// crash leaves the host as the death of the process would: sockets close, nothing is
// undone.
func (h *Host) crash() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	err := errors.Join(h.watcher.close(), h.nat.conn.CloseLasting())
	h.kernel.close()
	return err
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

func addrPort(a net.Addr) netip.AddrPort {
	p := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}
