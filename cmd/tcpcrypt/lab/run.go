package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Service is a server that runs on a host while the command runs.
type Service struct {
	Host    string
	Command string // for sh -c
}

// RunOptions is what `tcpcrypt lab` is told.
type RunOptions struct {
	Options
	Services []Service
	Command  []string // runs on the first host
	JSON     bool     // the report as one line of JSON, the last on Stderr
	Verbose  bool     // what daemons and servers write goes to Stderr, if there is no Log
	Stdin    *os.File
	Stdout   *os.File
	Stderr   io.Writer // of the command, if it is an *os.File, and for the report
}

// tell writes what goes wrong beside the command.
func (o *RunOptions) tell(err error) {
	_, _ = fmt.Fprintf(o.Stderr, "tcpcrypt lab: %v\n", err) // there is nobody else to tell
}

// Exit statuses of shells, env and nohup for commands that cannot be run.
const (
	statusNotExecutable = 126
	statusNotFound      = 127
)

// Run makes a lab, starts the servers, runs the command, stops everything and writes
// the report. It returns the command's exit status, 128 plus the number if a signal
// ended the command or kept it from starting, 1 if a daemon failed under it. The error
// is for what kept the command from running. Inside has to be true.
func Run(o RunOptions) (int, error) {
	if _, err := exec.LookPath(o.Command[0]); err != nil { // before all the work
		return cannotExecute(o, err), nil
	}
	if o.Verbose && o.Log == nil {
		o.Log = &lineLog{w: o.Stderr}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	relay := newSignalRelay(cancel)
	defer relay.close()

	status, err := run(ctx, o, relay)
	if signaled := (signalError{}); errors.As(err, &signaled) {
		return 128 + int(signaled.signal), nil
	}
	return status, err
}

// cannotExecute says why the command cannot be run, and returns the status for it.
func cannotExecute(o RunOptions, err error) int {
	o.tell(err)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return statusNotFound
	}
	return statusNotExecutable
}

func run(ctx context.Context, o RunOptions, relay *signalRelay) (status int, err error) {
	l, err := New(ctx, o.Options)
	if err != nil {
		return 0, err
	}
	closed := false
	defer func() {
		if !closed {
			_ = l.Close() // as in New
		}
	}()
	var servers []*Server
	for _, service := range o.Services {
		s, err := l.Host(service.Host).Serve(ctx, service.Command)
		if err != nil {
			return 0, err
		}
		servers = append(servers, s)
	}
	rec := newRecorder(l)
	status, err = runCommand(ctx, l.hosts[0], o, relay)
	if err != nil {
		rec.close()
		return 0, err
	}

	// From here on the command has had its run: what goes wrong is told, and makes the
	// status a failure if the command's is not one already.
	var troubles []error
	for _, s := range servers {
		select {
		case <-s.Done():
			// Some serve one connection and end; to be told, but no failure.
			o.tell(s.ended())
		default:
		}
	}
	l.StopServers()
	rows, recErr := rec.finish()
	closed = true
	troubles = append(troubles, recErr, l.Close())
	report := newReport(l, rows, status)
	writeErr := report.write(o.Stderr, o.JSON)
	if err := errors.Join(append(troubles, writeErr)...); err != nil {
		o.tell(err)
		if status == 0 {
			status = 1
		}
	}
	return status, nil
}

// runCommand runs the command and returns its status.
func runCommand(ctx context.Context, h *Host, o RunOptions, relay *signalRelay) (int, error) {
	cmd := h.Command(context.Background(), o.Command[0], o.Command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = o.Stdin, o.Stdout, o.Stderr
	terminal := os.Getenv(terminalVar) != ""
	if terminal {
		cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, int(o.Stdin.Fd())
		defer takeTerminal()
	}
	if err := relay.start(ctx, cmd, terminal); ctx.Err() != nil {
		return 0, err
	} else if err != nil {
		return cannotExecute(o, err), nil // not for this kernel, or its interpreter is missing
	}
	defer relay.stop()
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		return 0, err
	}
	return exitStatus(cmd.ProcessState.Sys().(syscall.WaitStatus)), nil
}

// A signalError is the cause of a lab's end before its command has started.
type signalError struct{ signal syscall.Signal }

func (e signalError) Error() string { return e.signal.String() }

// A signalRelay takes the process's signals. Before the command has started they end
// the lab, then they are the command's, and afterwards, when everything is coming down
// within a bounded time, they are of no use.
type signalRelay struct {
	signals chan os.Signal
	gone    chan struct{}
	cancel  context.CancelCauseFunc

	mu       sync.Mutex
	cmd      *Cmd // nil but between start and stop
	terminal bool
	over     bool
}

func newSignalRelay(cancel context.CancelCauseFunc) *signalRelay {
	r := &signalRelay{signals: make(chan os.Signal, 16), gone: make(chan struct{}), cancel: cancel}
	signal.Notify(r.signals, passedOn...)
	signal.Notify(r.signals, unix.SIGCHLD)
	go func() {
		defer close(r.gone)
		for s := range r.signals {
			r.handle(s.(syscall.Signal))
		}
	}()
	return r
}

// start starts the command unless ctx has ended.
func (r *signalRelay) start(ctx context.Context, cmd *Cmd, terminal bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r.cmd, r.terminal = cmd, terminal
	return nil
}

func (r *signalRelay) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cmd, r.over = nil, true
}

func (r *signalRelay) handle(s syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case s == unix.SIGCHLD:
		if r.cmd != nil && r.terminal {
			r.goOn(r.cmd.Process.Pid)
		}
	case r.cmd != nil:
		pid := r.cmd.Process.Pid
		if s == unix.SIGINT || s == unix.SIGQUIT || s == unix.SIGHUP || s == unix.SIGWINCH {
			pid = -pid // as if it came from the terminal, which means the whole job
		}
		_ = unix.Kill(pid, s) // it may just have ended
	case !r.over && s != unix.SIGWINCH:
		r.cancel(signalError{s})
	}
}

// goOn continues the command if it has been stopped: its terminal's shell sees the lab
// as its job, which has not stopped, so nobody else would.
func (r *signalRelay) goOn(pid int) {
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, pid, &info, unix.WSTOPPED|unix.WNOHANG, nil); err == nil && info.Signo == int32(unix.SIGCHLD) {
		_ = unix.Kill(-pid, unix.SIGCONT)
	}
}

func (r *signalRelay) close() {
	signal.Stop(r.signals)
	close(r.signals)
	<-r.gone
}
