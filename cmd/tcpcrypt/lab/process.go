package lab

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A process is a daemon or a server: it runs until it is stopped.
type process struct {
	what string // "tcpcrypt up on host b"
	cmd  *Cmd
	out  *output
	done chan struct{} // closed when it has ended and err is set
	err  error
}

// start runs cmd with its output going to out.
func (h *Host) start(what string, cmd *Cmd, out *output) (*process, error) {
	p := &process{what: what, cmd: cmd, out: out, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, &Error{What: "start " + what, Err: err}
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// ended describes an end that nobody asked for. It is called after done.
func (p *process) ended() error {
	how := "exit status 0"
	if p.err != nil {
		how = p.err.Error()
	}
	return fmt.Errorf("%s ended by itself: %s%s", p.what, how, p.out.last())
}

// stop ends the process and its children: it asks, and after grace it kills. It
// returns an error if the process had ended before, would not end, or ended badly.
func (p *process) stop(grace time.Duration) error {
	select {
	case <-p.done:
		return p.ended()
	default:
	}
	group := p.cmd.Process.Pid
	_ = unix.Kill(-group, unix.SIGTERM) // it may be ending just now
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		// Children that did not hear it, or did not want to.
		_ = unix.Kill(-group, unix.SIGKILL)
		return nil
	case <-timer.C:
		_ = unix.Kill(-group, unix.SIGKILL)
		<-p.done
		return fmt.Errorf("%s did not end within %v of SIGTERM and was killed%s", p.what, grace, p.out.last())
	}
}

// await waits for the event and describes what came instead.
func (p *process) await(ctx context.Context, event <-chan struct{}, limit time.Duration, want string) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-event:
		return nil
	case <-p.done:
		return p.ended()
	case <-timer.C:
		return fmt.Errorf("%s has not %s after %v%s", p.what, want, limit, p.out.last())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
