package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestReadyIsAWord(t *testing.T) {
	for _, tc := range []struct {
		writes []string
		want   bool
	}{
		{[]string{"level=INFO msg=ready socket=/run/tcpcrypt.sock\n"}, true},
		{[]string{"ready\n"}, true},
		{[]string{"is rea", "dy", ".\n"}, true},
		{[]string{"a line\nand ready\nand more"}, true},
		{[]string{"it is already there\n"}, false},
		{[]string{"not yet a line: ready"}, false},
	} {
		o := newOutput("a", nil)
		for _, w := range tc.writes {
			if n, err := o.Write([]byte(w)); n != len(w) || err != nil {
				t.Errorf("Write %q: %d, %v", w, n, err)
			}
		}
		select {
		case <-o.ready:
			if !tc.want {
				t.Errorf("%q was taken for ready", tc.writes)
			}
		default:
			if tc.want {
				t.Errorf("%q was not taken for ready", tc.writes)
			}
		}
	}
}

func TestOutputKeepsTheLastLines(t *testing.T) {
	o := newOutput("b", nil)
	for i := range 3 * tailLines {
		_, _ = fmt.Fprintf(o, "line %d\n", i)
	}
	_, _ = fmt.Fprintf(o, "%s", strings.Repeat("x", 3*maxLineSize))
	lines := strings.Split(o.last(), "\n")[1:] // the first is empty
	if len(lines) != tailLines+1 {
		t.Fatalf("%d lines kept, want %d and the one that goes on", len(lines), tailLines)
	}
	if want := fmt.Sprintf("    b| line %d", 2*tailLines); lines[0] != want {
		t.Errorf("first line %q, want %q", lines[0], want)
	}
	if got := len(lines[tailLines]); got != maxLineSize+len("    b| ") {
		t.Errorf("the last line has %d bytes, want it cut off at %d", got, maxLineSize)
	}
}

func TestProcessThatDoesNotGetReady(t *testing.T) {
	l := newTestLab(t, twoPlain())
	h := l.Host("b")
	out := newOutput("b", nil)
	p, err := h.start("sleeper", h.Command(context.Background(), "sh", "-c", "echo about to sleep; sleep 1000"), out)
	if err != nil {
		t.Fatal(err)
	}
	const want = "sleeper has not said that it is ready after 200ms\n    b| about to sleep"
	if err := p.await(t.Context(), out.ready, 200*time.Millisecond, "said that it is ready"); err == nil || err.Error() != want {
		t.Errorf("await: %v, want %s", err, want)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(signalError{unix.SIGTERM})
	if err := p.await(ctx, out.ready, time.Hour, "said that it is ready"); !errors.Is(err, signalError{unix.SIGTERM}) {
		t.Errorf("await with a context that has ended: %v", err)
	}
	if err := p.stop(time.Minute); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// daemonOn is a lab whose host b has the fake daemon with that configuration.
func daemonOn(config string) Options {
	return Options{Hosts: []HostOptions{{Name: "a", Plain: true}, {Name: "b", Config: config}}}
}

func TestDaemonThatDoesNotStart(t *testing.T) {
	t.Setenv(programVar, "1")
	_, err := New(t.Context(), daemonOn("refuse to start"))
	const want = "tcpcrypt up on host b ended by itself: exit status 1\n" +
		"    b| the fake daemon is not already there\n    b| something is wrong here"
	if err == nil || err.Error() != want {
		t.Errorf("New: %v\nwant %s", err, want)
	}
}

func TestDaemonThatEndsBadly(t *testing.T) {
	t.Setenv(programVar, "1")
	l, err := New(t.Context(), daemonOn("end badly"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err == nil || !strings.Contains(err.Error(), "exit status 1") || !strings.Contains(err.Error(), "b| cannot undo") {
		t.Errorf("Close: %v, want it to tell of the daemon", err)
	}
}

func TestDaemonThatDiesMakesTheLabFail(t *testing.T) {
	o := RunOptions{Options: daemonOn("# nothing special"), Command: []string{"sh", "-c", `
		for p in /proc/[0-9]*; do
			case $(tr '\0' ' ' < $p/cmdline) in "tcpcrypt up "*) kill -KILL ${p#/proc/};; esac
		done`}}
	status, _, stderr := finished(t, outside(t.Context(), t, o))
	// Noticed before the end, or at it.
	if status != 1 || !strings.Contains(stderr, "tcpcrypt up on host b") || !strings.Contains(stderr, "signal: killed") {
		t.Errorf("status %d, want 1; stderr %s", status, stderr)
	}
}

func TestDaemonReadsItsConfiguration(t *testing.T) {
	t.Setenv(programVar, "1")
	l := newTestLab(t, daemonOn(""))
	out, err := l.Host("b").Command(t.Context(), "cat", configPath).Output()
	if err != nil || string(out) != DefaultConfig() {
		t.Errorf("%v: %s", err, out)
	}
	if log := l.Host("b").DaemonLog(); !strings.Contains(log, "ready") {
		t.Errorf("log: %s", log)
	}
}
