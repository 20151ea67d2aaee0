package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	programDir = runDir + "/lab/bin" // holds the daemon's program, on hosts that run it
	configPath = runDir + "/tcpcrypt.toml"
	socketPath = runDir + "/tcpcrypt.sock" // the default of root, so that commands on the host need no flag

	readyLimit = 30 * time.Second // many daemons on few processors
	stopGrace  = 10 * time.Second // a daemon resets its connections and undoes its changes
)

// DefaultConfig is the daemon's configuration on a host that has none of its own:
// every connection within the lab, both ways, opportunistically.
func DefaultConfig() string {
	var to []string
	for _, p := range Prefixes() {
		if p.Addr().Is4() || haveIPv6() {
			to = append(to, fmt.Sprintf("%q", p.String()))
		}
	}
	return `[[outbound]]
to     = [` + strings.Join(to, ", ") + `]
policy = "opportunistic"

[[inbound]]
ports  = ["1-65535"]
policy = "opportunistic"
`
}

// A daemon is `tcpcrypt up` on a host.
type daemon struct {
	*process
}

// startDaemon starts the host's daemon and does not wait for it.
func (h *Host) startDaemon(program string) error {
	config := h.options.Config
	if config == "" {
		config = DefaultConfig()
	}
	link, err := filepath.Abs(program)
	if program == "" {
		program = "/proc/self/exe"
		link, err = os.Executable()
	}
	if err != nil {
		return err
	}
	err = h.Do(func() error {
		if err := os.Mkdir(programDir, 0o755); err != nil {
			return err
		}
		return errors.Join(
			os.Symlink(link, filepath.Join(programDir, "tcpcrypt")),
			os.WriteFile(configPath, []byte(config), 0o644))
	})
	if err != nil {
		return &Error{What: "prepare the daemon of host " + h.Name(), Err: err}
	}
	// Not under anybody's context: it ends in Close.
	cmd := h.Command(context.Background(), program, "up", "-c", configPath, "--socket", socketPath)
	cmd.Args[0] = "tcpcrypt"
	p, err := h.start("tcpcrypt up on host "+h.Name(), cmd, newOutput(h.Name(), h.log))
	if err != nil {
		return err
	}
	h.daemon = &daemon{p}
	return nil
}

// awaitReady waits for the line with the word ready.
func (d *daemon) awaitReady(ctx context.Context) error {
	return d.await(ctx, d.out.ready, readyLimit, "said that it is ready")
}

// stopDaemon stops the host's daemon, if it has one. The error says if it had ended
// before, or ends in failure.
func (h *Host) stopDaemon() error {
	if h.daemon == nil {
		return nil
	}
	if err := h.daemon.stop(stopGrace); err != nil {
		return err
	}
	if h.daemon.err != nil {
		return fmt.Errorf("%s, told to stop: %w%s", h.daemon.what, h.daemon.err, h.daemon.out.last())
	}
	return nil
}

// DaemonLog returns the last lines that the host's daemon has written, for a test that
// fails. It is empty for a plain host.
func (h *Host) DaemonLog() string {
	if h.daemon == nil {
		return ""
	}
	return h.daemon.out.last()
}

// DaemonDone is closed when the host's daemon has ended; it is nil for a plain host.
func (h *Host) DaemonDone() <-chan struct{} {
	if h.daemon == nil {
		return nil
	}
	return h.daemon.done
}

// SignalDaemon sends a signal to the host's daemon.
func (h *Host) SignalDaemon(s os.Signal) error {
	if h.daemon == nil {
		return errors.New("host " + h.Name() + " has no daemon")
	}
	return h.daemon.cmd.Process.Signal(s)
}
