package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// programVar makes the test binary a program like tcpcrypt, with the commands of
// program.
const programVar = "TCPCRYPT_LAB_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programVar) != "" {
		os.Exit(program(os.Args[1:]))
	}
	os.Exit(Main(func() int {
		status := m.Run()
		removeProgram()
		if status == 0 {
			if err := goleak.Find(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				status = 1
			}
		}
		return status
	}))
}

// program stands in for the tcpcrypt binary: `run JSON` is `tcpcrypt lab`, `up` a
// daemon that only looks like one, `web` a web server, `signals` a command that tells
// which signals it gets.
func program(args []string) int {
	switch args[0] {
	case "run":
		return runProgram(args)
	case "up":
		return fakeDaemon(args[2])
	case "signals":
		return tellSignals()
	case "web":
		server := &http.Server{
			Addr:              ":80",
			Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello\n") }),
			ReadHeaderTimeout: time.Minute,
		}
		fmt.Fprintln(os.Stderr, server.ListenAndServe())
		return 1
	default:
		fmt.Fprintln(os.Stderr, "no command", args[0])
		return 2
	}
}

func runProgram(args []string) int {
	var status int
	var err error
	if Inside() {
		var o RunOptions
		if err := json.Unmarshal([]byte(args[1]), &o); err != nil {
			panic(err)
		}
		o.Stdin, o.Stdout, o.Stderr = os.Stdin, os.Stdout, os.Stderr
		status, err = Run(o)
	} else {
		status, err = Enter(Process{Args: args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tcpcrypt:", err)
		var hint interface{ Hint() string }
		if errors.As(err, &hint) {
			fmt.Fprintln(os.Stderr, "  try:", hint.Hint())
		}
		return 1
	}
	return status
}

// tellSignals writes a line for each signal, until SIGTERM.
func tellSignals() int {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedOn...)
	_, _ = os.Stdout.WriteString("up\n")
	for s := range signals {
		_, _ = os.Stdout.WriteString(unix.SignalName(s.(unix.Signal)) + "\n")
		if s == unix.SIGTERM {
			break
		}
	}
	return 41
}

// fakeDaemon does what its configuration says, in words of these tests.
func fakeDaemon(configFile string) int {
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, unix.SIGTERM)
	config, err := os.ReadFile(configFile)
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(os.Stderr, "the fake daemon is not already there")
	switch strings.TrimSpace(string(config)) {
	case "refuse to start":
		fmt.Fprintln(os.Stderr, "something is wrong here")
		return 1
	case "end badly":
		fmt.Fprintln(os.Stderr, "ready")
		<-terminate
		fmt.Fprintln(os.Stderr, "cannot undo")
		return 1
	}
	fmt.Fprintln(os.Stderr, "ready")
	<-terminate
	return 0
}

// twoPlain is a lab without daemons.
func twoPlain() Options {
	return Options{Hosts: []HostOptions{{Name: "a", Plain: true}, {Name: "b", Plain: true}}}
}

// newTestLab makes a lab and takes it down at the end of the test.
func newTestLab(t *testing.T, o Options) *Lab {
	t.Helper()
	l, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return l
}

// outside returns `tcpcrypt lab`, to be started like by a user.
func outside(ctx context.Context, t *testing.T, o RunOptions) *exec.Cmd {
	t.Helper()
	args, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "run", string(args))
	cmd.Env = append(os.Environ(), programVar+"=1")
	cmd.WaitDelay = time.Second
	return cmd
}

// plainRun is a lab without daemons that runs a script on a.
func plainRun(script string) RunOptions {
	return RunOptions{Options: twoPlain(), Command: []string{"sh", "-c", script}}
}

// finished runs cmd and returns its exit status and what it wrote.
func finished(t *testing.T, cmd *exec.Cmd) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// readTo reads from r up to and including the line want.
func readTo(t *testing.T, r io.Reader, want string) {
	t.Helper()
	var seen []byte
	for b := make([]byte, 1); !bytes.HasSuffix(seen, []byte(want+"\n")); {
		if _, err := r.Read(b); err != nil {
			t.Fatalf("waiting for %q after %q: %v", want, seen, err)
		}
		seen = append(seen, b...)
	}
}
