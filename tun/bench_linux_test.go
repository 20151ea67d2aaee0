package tun

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkPlainSegments is one connection from another host that sends segments of
// the MTU's size. Needs root.
func BenchmarkPlainSegments(b *testing.B) {
	ns := newNamespace(b)
	var e *Endpoint
	var from, to net.Conn
	ns.do(func() {
		e = newTestEndpoint(b, openDevice(b, Options{MTU: 1500}), EndpointOptions{})
		from, to = plainSender(b, newNetstack(b, e, netstack4))
	})
	stream(b, from, to)
	st := e.Stats()
	b.ReportMetric(float64(st.InPackets)/float64(st.InDelivered), "packets/merged")
}

// BenchmarkTCP is one connection between netstack and a socket of the kernel through
// the device: goodput, and the packets it took. The kernel's own TCP over loopback is
// the peer to compare with. Needs root.
func BenchmarkTCP(b *testing.B) {
	for _, how := range []struct {
		name      string
		mtu       int
		noOffload bool
		kernel    bool
	}{
		{"path=loopback", 0, false, true},
		{"path=tun/mtu=65535", maxPacket, false, false},
		{"path=tun/mtu=1500", 1500, false, false},
		{"path=tun-no-offload/mtu=1500", 1500, true, false},
	} {
		for _, in := range []bool{false, true} {
			name := how.name + "/to=kernel"
			if in {
				if name = how.name + "/to=netstack"; how.kernel {
					continue
				}
			}
			b.Run(name, func(b *testing.B) {
				ns := newNamespace(b)
				var from, to net.Conn
				var e *Endpoint
				if how.kernel {
					ns.do(func() { setUp(b, "lo") })
					from, to = loopback(b, ns)
				} else {
					e, from, to = throughDevice(b, ns, Options{MTU: how.mtu, NoOffload: how.noOffload})
				}
				if in {
					from, to = to, from
				}
				stream(b, from, to)
				if e != nil {
					st := e.Stats()
					mib := float64(st.OutBytes+st.InBytes) / (1 << 20)
					b.ReportMetric(float64(st.OutPackets)/mib, "out-packets/MiB")
					b.ReportMetric(float64(st.InPackets)/mib, "in-packets/MiB")
				}
			})
		}
	}
}

// stream sends b.N chunks of a mebibyte.
func stream(b *testing.B, from, to net.Conn) {
	b.Helper()
	const chunk = 1 << 20
	out := make([]byte, chunk)
	b.SetBytes(chunk)
	done := make(chan error, 1)
	n := int64(0)
	go func() {
		m, err := io.CopyBuffer(onlyWriter{io.Discard}, to, make([]byte, 256<<10))
		if err == nil && m != n {
			err = fmt.Errorf("%d bytes arrived of %d", m, n)
		}
		done <- err
	}()
	before := cpuTime(b)
	for b.Loop() {
		if _, err := from.Write(out); err != nil {
			b.Fatal(err)
		}
		n += chunk
	}
	if err := from.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		b.Fatal(err)
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(n/chunk), "cpu-µs/MiB")
}

// cpuTime is what this process has used of all processors, in user space and kernel:
// steadier than the throughput where others use them too.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func throughDevice(b *testing.B, ns *namespace, o Options) (e *Endpoint, netstack, kernel net.Conn) {
	b.Helper()
	var l net.Listener
	to := netip.AddrPortFrom(kernel4, 80)
	ns.do(func() {
		d := openDevice(b, o)
		e = newTestEndpoint(b, d, EndpointOptions{})
		l = kernelListen(b, to)
	})
	s := newNetstack(b, e, netstack4)
	netstack, kernel = connect(b, l, func() net.Conn { return netstackDial(b, s, to) })
	return e, netstack, kernel
}

func loopback(b *testing.B, ns *namespace) (near, far net.Conn) {
	b.Helper()
	var l net.Listener
	ns.do(func() { l = kernelListen(b, netip.MustParseAddrPort("127.0.0.1:80")) })
	return connect(b, l, func() (c net.Conn) {
		ns.do(func() { c = kernelDial(b, netip.MustParseAddrPort("127.0.0.1:80")) })
		return c
	})
}
