package e2e

import (
	"context"
	"errors"
	"fmt"
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

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/lab"
	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// patience bounds every wait of a test for something that ought to happen soon.
const patience = 30 * time.Second

// A node is a host of the lab, made without a daemon: tests start that themselves.
type node struct {
	*lab.Host
	netns int
	dir   string // for files of this host alone
}

// A network is hosts a, b, ... around a router, private to one test.
type network struct {
	*lab.Lab
	a, b   *node
	router int // its network namespace
	peers  *wirepeer.Host
	pcap   string // directory of captures; "" without
}

// How a network differs from the usual one.
type networkOptions struct {
	capture bool // of every link; complete after network.finish
	plainC  bool // a third host, c
}

func newNetwork(t *testing.T, o networkOptions) *network {
	t.Helper()
	dir := t.TempDir()
	lo := lab.Options{Hosts: []lab.HostOptions{{Name: "a", Plain: true}, {Name: "b", Plain: true}}}
	if o.plainC {
		lo.Hosts = append(lo.Hosts, lab.HostOptions{Name: "c", Plain: true})
	}
	n := &network{}
	if o.capture {
		n.pcap = t.ArtifactDir()
		lo.Pcap = n.pcap
	}
	var err error
	if n.Lab, err = lab.New(t.Context(), lo); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.finish(t) })
	n.a, n.b = n.node(t, "a", dir), n.node(t, "b", dir)
	n.router = ownNamespace(t, n.Router)
	return n
}

// finish takes the network down, which completes the captures.
func (n *network) finish(t *testing.T) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Errorf("take the network down: %v", err)
	}
}

func (n *network) node(t *testing.T, name, dir string) *node {
	t.Helper()
	h := &node{Host: n.Host(name), dir: filepath.Join(dir, name)}
	if err := os.Mkdir(h.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h.netns = ownNamespace(t, h.Do)
	return h
}

// ownNamespace opens the network namespace that do runs functions in.
func ownNamespace(t *testing.T, do func(func() error) error) int {
	t.Helper()
	fd := -1
	err := do(func() (err error) {
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatalf("open a network namespace: %v", err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// inNamespace runs f on a thread in the network namespace, which it may block: sockets
// that it makes belong there. The thread ends with it.
func inNamespace(netns int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocks: the runtime ends the thread
		if unix.Gettid() == unix.Getpid() {
			// The main thread is what /proc/self shows. Hold it while another does the work.
			done <- inNamespace(netns, f)
			runtime.UnlockOSThread()
			return
		}
		if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// addr is the host's address of either family.
func (n *node) addr(v6 bool) netip.Addr {
	if v6 {
		return n.Addr6()
	}
	return n.Addr4()
}

// families names the subtests for both.
var families = []struct {
	name string
	v6   bool
}{{"IPv4", false}, {"IPv6", true}}

// dial connects from the host. The error is net.Dial's.
func (n *node) dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	return n.dialFrom(ctx, netip.AddrPort{}, to)
}

func (n *node) dialFrom(ctx context.Context, from, to netip.AddrPort) (conn *net.TCPConn, err error) {
	d := net.Dialer{}
	d.SetMultipathTCP(false)
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(from)
		d.Control = func(_, _ string, c syscall.RawConn) (err error) {
			controlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
			return errors.Join(controlErr, err)
		}
	}
	err = inNamespace(n.netns, func() error {
		c, err := d.DialContext(ctx, "tcp", to.String())
		if err == nil {
			conn = c.(*net.TCPConn)
		}
		return err
	})
	return conn, err
}

// mustDial is dial for where it has to work. The connection is closed with the test.
func (n *node) mustDial(t *testing.T, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	conn, err := n.dial(soon(t), to)
	if err != nil {
		t.Fatalf("host %s: %v", n.Name(), err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	setDeadline(t, conn)
	return conn
}

// listen takes connections on the host, on all its addresses.
func (n *node) listen(t *testing.T, port uint16) *net.TCPListener {
	t.Helper()
	var l *net.TCPListener
	err := inNamespace(n.netns, func() error {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		x, err := lc.Listen(t.Context(), "tcp", fmt.Sprintf(":%d", port))
		if err == nil {
			l = x.(*net.TCPListener)
		}
		return err
	})
	if err != nil {
		t.Fatalf("host %s: %v", n.Name(), err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// accept returns the listener's next connection.
func accept(t *testing.T, l *net.TCPListener) *net.TCPConn {
	t.Helper()
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	conn, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	setDeadline(t, conn)
	return conn
}

func setDeadline(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
}

// soon is a context with the usual patience.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// run runs a program on the host and returns what it printed.
func (n *node) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := n.try(t, name, args...)
	if err != nil {
		t.Fatalf("host %s: %s %s: %v\n%s", n.Name(), name, strings.Join(args, " "), err, out)
	}
	return out
}

func (n *node) try(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	out, err := n.Command(soon(t), need(t, name), args...).CombinedOutput()
	return string(out), err
}

// need finds a program, in the places too that only root's PATH has.
func need(t *testing.T, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/lib/postgresql/*/bin"} {
		if found, _ := filepath.Glob(filepath.Join(dir, name)); len(found) > 0 {
			return found[len(found)-1]
		}
	}
	t.Fatalf("%s is not installed: see the package's documentation for the Debian packages", name)
	return ""
}

// The addresses that wirepeer answers for: behind the router, owned by no kernel, and
// among lab.Prefixes, which all hosts route there.
var peerPrefixes = []netip.Prefix{netip.MustParsePrefix("10.83.251.0/24"), netip.MustParsePrefix("fd83:0:0:fb::/64")}

// peerAddr is the nth of them.
func peerAddr(v6 bool, n byte) netip.Addr {
	if v6 {
		a := peerPrefixes[1].Addr().As16()
		a[15] = n
		return netip.AddrFrom16(a)
	}
	a := peerPrefixes[0].Addr().As4()
	a[3] = n
	return netip.AddrFrom4(a)
}

// wirePeers puts a wirepeer host behind the router.
func (n *network) wirePeers(t *testing.T) *wirepeer.Host {
	t.Helper()
	link := n.routerTUN(t, "peers")
	err := inNamespace(n.router, func() error {
		return withLink("peers", func(h *netlink.Handle, dev netlink.Link) error {
			for _, p := range peerPrefixes {
				dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
				if err := h.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: dst}); err != nil {
					return fmt.Errorf("route to %v: %w", p, err)
				}
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	host := wirepeer.NewHost(link)
	t.Cleanup(host.Close)
	n.peers = host
	return host
}

// queueLength is far above what one flow of segments in flight needs: a TUN device
// drops what nobody has read yet.
const queueLength = 10_000

// routerTUN makes a TUN device in the router, up.
func (n *network) routerTUN(t *testing.T, name string) wirepeer.Link {
	t.Helper()
	var link wirepeer.Link
	err := inNamespace(n.router, func() (err error) {
		if link, err = wirepeer.OpenTUN(name); err != nil {
			return err
		}
		return withLink(name, func(h *netlink.Handle, dev netlink.Link) error {
			if err := h.LinkSetTxQLen(dev, queueLength); err != nil {
				return err
			}
			return h.LinkSetUp(dev)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// withLink calls f with a device of the calling thread's namespace.
func withLink(name string, f func(h *netlink.Handle, dev netlink.Link) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	dev, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return f(h, dev)
}

// eventually tries until check is content: for what no event tells of.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
