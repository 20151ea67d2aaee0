//go:build linux

package routing

import (
	"bytes"
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
	t.Parallel() // each has its own kernel, as it were
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
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
	var err error
	if h.watcher != nil {
		err = h.watcher.close()
	}
	if h.nat != nil {
		err = errors.Join(err, h.nat.conn.CloseLasting())
	}
	h.kernel.close()
	h.diag.close()
	return errors.Join(err, h.ct.Close())
}

func addrPort(a net.Addr) netip.AddrPort {
	p := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}
