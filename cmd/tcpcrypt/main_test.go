package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tcpcrypt": main})
}

// TestScript has a file for each promise of the command line.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", RequireExplicitExec: true, RequireUniqueNames: true})
}

// TestSignalsStopUpInOrder: status 0 says that all is undone.
func TestSignalsStopUpInOrder(t *testing.T) {
	// Under nohup SIGHUP is ignored, and the programs that we start would inherit that;
	// a signal that we hear they get with its default.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(hangups) })
	for name, signals := range map[string][]syscall.Signal{
		"SIGINT":                 {syscall.SIGINT},
		"SIGTERM":                {syscall.SIGTERM},
		"SIGHUP":                 {syscall.SIGHUP},
		"SIGINT twice, as one":   {syscall.SIGINT, syscall.SIGINT}, // timeout(1) does this
		"SIGTERM twice, as one":  {syscall.SIGTERM, syscall.SIGTERM},
		"nobody reads the log":   {syscall.SIGPIPE, syscall.SIGTERM},
		"the terminal goes away": {syscall.SIGHUP, syscall.SIGPIPE},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, log := startUp(t, "debug")
			for _, s := range signals {
				if s == syscall.SIGPIPE {
					_ = log.Close() // the next line of the log brings the signal
					continue
				}
				if err := cmd.Process.Signal(s); err != nil {
					t.Fatal(err)
				}
			}
			rest, err := io.ReadAll(log)
			if err != nil && !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("tcpcrypt up: %v\n%s", err, rest)
			}
		})
	}
}

// TestUpSaysReadyAtEveryLogLevel: others wait for that line, and at the level error it
// is the only one.
func TestUpSaysReadyAtEveryLogLevel(t *testing.T) {
	cmd, log := startUp(t, "error")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(log)
	if err != nil || len(rest) > 0 {
		t.Errorf("after it: %q, %v", rest, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// startUp starts the program in a network namespace of its own, and returns it and its
// log when it is ready.
func startUp(t *testing.T, level string) (*exec.Cmd, *os.File) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "c.toml")
	if err := os.WriteFile(file, []byte("[[outbound]]\nto = ['10.0.0.0/8']\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "up", "-c", file, "--socket", filepath.Join(dir, "s"), "--log-level", level)
	cmd.Args[0] = "tcpcrypt"
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	cmd.Stderr = w
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		t.Fatalf("in a network namespace: %v", err)
	}
	var said strings.Builder
	for lines := bufio.NewScanner(r); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "ready") {
			return cmd, r
		}
	}
	t.Fatalf("not ready: %v\n%s", cmd.Wait(), said.String())
	return nil, nil
}
