package daemon

import (
	"bytes"
	"context"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/config"
	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

// These tests run the real daemon on a real kernel: they need TUN, nf_tables,
// conntrack, and the programs ip and nft.

const (
	netnsMarker = "TCPCRYPT_TEST_IN_NETNS"
	patience    = 30 * time.Second // until a test gives up on what must come
)

// inNetns reruns the calling top-level test in a child that owns a fresh network
// namespace, and a user namespace without root, and reports true there. The namespace
// dies with the child.
func inNetns(t *testing.T) bool {
	t.Helper()
	if os.Getenv(netnsMarker) == t.Name() {
		ip(t, "link set lo up")
		return true
	}
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), netnsMarker+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) { // a skip is not a pass
		t.Fatalf("in namespace: %v", err)
	}
	return false
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func ip(t *testing.T, args string) string {
	t.Helper()
	return command(t, "ip", strings.Fields(args)...)
}

// uplink gives the host an uplink to a neighbour that is another host, and returns a
// way to run something there. Both have IPv4 and IPv6: 10.1.1.1 and fd01::1 here, .2
// and ::2 there.
func uplink(t *testing.T) (there func(f func())) {
	t.Helper()
	jobs, made, ended := make(chan func()), make(chan error), make(chan struct{})
	var ns netns.NsHandle
	go func() {
		defer close(ended)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var err error
		ns, err = netns.New()
		made <- err
		for job := range jobs {
			job()
		}
	}()
	if err := <-made; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	there = func(f func()) {
		done := make(chan struct{})
		jobs <- func() {
			defer close(done)
			f()
		}
		<-done
	}
	t.Cleanup(func() {
		close(jobs)
		<-ended
		_ = ns.Close()
	})
	there(func() { ip(t, "link add up0 type veth peer name eth0 netns "+strconv.Itoa(os.Getpid())) })
	there(func() {
		ip(t, "link set lo up")
		ip(t, "link set up0 addrgenmode none") // no address comes later, by itself
		ip(t, "addr add 10.1.1.2/24 dev up0")
		ip(t, "addr add fd01::2/64 dev up0 nodad")
		ip(t, "link set up0 up")
	})
	ip(t, "link set eth0 addrgenmode none")
	ip(t, "addr add 10.1.1.1/24 dev eth0")
	ip(t, "addr add fd01::1/64 dev eth0 nodad")
	ip(t, "link set eth0 up")
	settle(t)
	return there
}

// settle waits until the uplink is up: the kernel takes its time to say so.
func settle(t *testing.T) {
	t.Helper()
	for until := time.Now().Add(patience); time.Now().Before(until); {
		if i, err := net.InterfaceByName("eth0"); err == nil && i.Flags&net.FlagRunning != 0 {
			return
		}
		wait(t)
	}
	t.Fatal("the uplink does not come up")
}

// wait is a pause between two looks at the kernel.
func wait(t *testing.T) {
	t.Helper()
	select {
	case <-time.After(20 * time.Millisecond):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

// snapshot is all of the host that a daemon changes.
func snapshot(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, args := range []string{"rule", "-6 rule", "route show table all", "-6 route show table all", "addr", "-d link"} {
		b.WriteString("# ip " + args + "\n" + volatile.ReplaceAllString(ip(t, args), ""))
	}
	b.WriteString("# nft\n" + command(t, "nft", "list", "ruleset"))
	for _, dir := range []string{"/proc/sys/net/ipv4", "/proc/sys/net/ipv6", "/proc/sys/net/netfilter"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || strings.Contains(path, "conntrack_count") {
				return err
			}
			if value, err := os.ReadFile(path); err == nil { // some may only be written
				b.WriteString(path + "=" + string(value))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// volatile is what changes in ip's output by itself.
var volatile = regexp.MustCompile(`expires \d+sec|(valid|preferred)_lft \d+sec`)

// sameAs compares the host with what it was.
func sameAs(t *testing.T, before string) {
	t.Helper()
	after := snapshot(t)
	count := make(map[string]int)
	for line := range strings.Lines(before) {
		count[line]--
	}
	for line := range strings.Lines(after) {
		count[line]++
	}
	for line, n := range count {
		switch {
		case n > 0:
			t.Errorf("left behind: %s", line)
		case n < 0:
			t.Errorf("gone: %s", line)
		}
	}
}

// A record collects a daemon's log, and tells when it is ready. A hook, if there is
// one, hears of each line first.
type record struct {
	mu    sync.Mutex
	text  bytes.Buffer
	hook  func(lines int)
	lines int
	ready chan struct{}
	once  sync.Once
}

// Write implements io.Writer; slog's handlers write a line at a time.
func (r *record) Write(line []byte) (int, error) {
	r.mu.Lock()
	r.text.Write(line)
	r.lines++
	n, hook := r.lines, r.hook
	r.mu.Unlock()
	if bytes.Contains(line, []byte("ready")) {
		r.once.Do(func() { close(r.ready) })
	}
	if hook != nil {
		hook(n)
	}
	return len(line), nil
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// A run is a daemon in this process.
type run struct {
	t      *testing.T
	log    *record
	socket string
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // valid once ended is closed
}

// options parses a configuration for a daemon that logs everything to r.
func options(t *testing.T, doc, socket string, r *record) Options {
	t.Helper()
	c, problems := config.Parse("test.toml", []byte(doc))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	log := slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return Options{Config: c, Socket: socket, Log: log}
}

// launch runs a daemon. It is stopped with the test.
func launch(t *testing.T, doc string, hook func(lines int)) *run {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background()) // its end is what is tested
	r := &run{
		t: t, log: &record{hook: hook, ready: make(chan struct{})}, cancel: cancel,
		socket: filepath.Join(t.TempDir(), "s"), ended: make(chan struct{}),
	}
	o := options(t, doc, r.socket, r.log)
	go func() {
		defer close(r.ended)
		r.err = Run(ctx, o)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.ended
		if t.Failed() {
			t.Logf("log:\n%s", r.log)
		}
	})
	return r
}

// up is a daemon that is ready.
func up(t *testing.T, doc string) *run {
	t.Helper()
	r := launch(t, doc, nil)
	r.awaitReady()
	return r
}

func (r *run) awaitReady() {
	r.t.Helper()
	select {
	case <-r.log.ready:
	case <-r.ended:
		r.t.Fatalf("ended before it was ready: %v", r.err)
	case <-time.After(patience):
		r.t.Fatal("not ready in time")
	}
}

// end waits for the daemon's end and returns its error.
func (r *run) end() error {
	r.t.Helper()
	select {
	case <-r.ended:
		return r.err
	case <-time.After(patience):
		r.t.Fatal("does not end")
		return nil
	}
}

func (r *run) stop() error {
	r.t.Helper()
	r.cancel()
	return r.end()
}

func (r *run) conns(closed bool) []control.Conn {
	r.t.Helper()
	conns, err := (&control.Client{Socket: r.socket}).Conns(r.t.Context(), closed)
	if err != nil {
		r.t.Fatal(err)
	}
	return conns
}

// serve accepts and echoes on all addresses there, on a port.
func serve(t *testing.T, there func(func()), port string) {
	t.Helper()
	var l net.Listener
	var err error
	there(func() { l, err = net.Listen("tcp", ":"+port) })
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				buf := make([]byte, 1024)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if _, err := c.Write(buf[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
}
