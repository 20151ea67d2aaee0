package lab

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Host is one host of a Lab.
type Host struct {
	lab     *Lab
	options HostOptions
	link    link
	log     LineWriter
	space   *space
	run     *os.File // the host's /run, by which the rest of the process reaches its sockets
	daemon  *daemon  // nil: plain, or not started

	mu      sync.Mutex
	servers []*Server
	running map[int]struct{} // process groups started by Command and not waited for yet
}

// Name returns the name that resolves to the host's addresses.
func (h *Host) Name() string { return h.options.Name }

// Plain reports whether the host runs no daemon.
func (h *Host) Plain() bool { return h.options.Plain }

// Addr4 returns the host's IPv4 address.
func (h *Host) Addr4() netip.Addr { return h.link.far[0] }

// Addr6 returns the host's IPv6 address.
func (h *Host) Addr6() netip.Addr { return h.link.far[1] }

// RouterInterface returns the name of the router's end of the host's link, for those
// who want to look at it or to put something in between.
func (h *Host) RouterInterface() string { return h.link.router }

// Do runs f on a thread that is on the host: sockets made there belong to it, and
// paths such as /run and /proc/sys/net are its own. Calls come one after another, so
// f should not wait for the network; it must not call Do.
func (h *Host) Do(f func() error) error { return h.space.do(f) }

// build makes the namespaces and the link.
func (h *Host) build(names []byte) error {
	var err error
	h.space, err = newSpace(unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWUTS, func() error {
		if err := furnish(h.Name(), names); err != nil {
			return err
		}
		if h.run, err = os.Open(runDir); err != nil {
			return err
		}
		if err := readyNetwork(); err != nil {
			return &Error{What: "prepare host " + h.Name(), Err: err}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := h.link.lay(h.lab.router, h.space); err != nil {
		return &Error{What: "join host " + h.Name() + " to the router", Err: err}
	}
	return nil
}

// close takes the namespaces down.
func (h *Host) close() {
	if h.space != nil {
		h.space.close()
	}
	if h.run != nil {
		_ = h.run.Close() // nothing was written by it
	}
}

// killRest ends what Command has started and nobody has waited for.
func (h *Host) killRest() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for group := range h.running {
		_ = unix.Kill(-group, unix.SIGKILL)
	}
}

// A Cmd is an exec.Cmd whose process starts on a host, in a process group of its own
// which is killed when the context ends. Its fields are used as those of exec.Cmd.
type Cmd struct {
	*exec.Cmd
	host *Host
}

// pipesGrace is how long a command's pipes may stay open after its end, held by
// children it has left.
const pipesGrace = 2 * time.Second

// Command returns a command to be run on the host. It inherits the environment, but
// for what names things that are not there.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = environment()
	cmd.WaitDelay = pipesGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	// The host's thread has a working directory of its own, from when it was made.
	if dir, err := os.Getwd(); err == nil && dir != runDir && !strings.HasPrefix(dir, runDir+"/") {
		cmd.Dir = dir
	}
	return &Cmd{Cmd: cmd, host: h}
}

// environment is the process's, without our own marks and without the directories and
// buses of the user's session, which are not on the hosts; tcpcrypt is found last in
// PATH.
func environment() []string {
	var env []string
	for _, v := range withoutStage(os.Environ()) {
		name, value, _ := strings.Cut(v, "=")
		switch name {
		case "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS":
		case "PATH":
			env = append(env, "PATH="+value+":"+programDir)
		default:
			env = append(env, v)
		}
	}
	return env
}

// Start is exec.Cmd's.
func (c *Cmd) Start() error {
	return c.host.space.do(func() error {
		// The lock is held across the start, so that killRest misses nobody.
		c.host.mu.Lock()
		defer c.host.mu.Unlock()
		if err := c.Cmd.Start(); err != nil {
			return err
		}
		c.host.running[c.Process.Pid] = struct{}{}
		return nil
	})
}

// Wait is exec.Cmd's.
func (c *Cmd) Wait() error {
	err := c.Cmd.Wait()
	if c.Process != nil {
		c.host.mu.Lock()
		delete(c.host.running, c.Process.Pid)
		c.host.mu.Unlock()
	}
	return err
}

// Run is exec.Cmd's.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output is exec.Cmd's, but that the error does not hold the standard error.
func (c *Cmd) Output() ([]byte, error) {
	var out strings.Builder
	c.Stdout = &out
	err := c.Run()
	return []byte(out.String()), err
}

// CombinedOutput is exec.Cmd's.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return []byte(out.String()), err
}
