package lab

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestExitStatusIsTheCommands(t *testing.T) {
	for _, tc := range []struct {
		command []string
		want    int
	}{
		{[]string{"true"}, 0},
		{[]string{"sh", "-c", "exit 7"}, 7},
		{[]string{"sh", "-c", "kill -KILL $$"}, 128 + 9},
		{[]string{"no-such-command"}, 127},
		{[]string{"/etc/hosts"}, 126},
	} {
		o := RunOptions{Options: twoPlain(), Command: tc.command}
		if got, _, stderr := finished(t, outside(t.Context(), t, o)); got != tc.want {
			t.Errorf("%q: status %d, want %d; stderr %s", tc.command, got, tc.want, stderr)
		}
	}
}

func TestCommandHasTheStandardStreams(t *testing.T) {
	cmd := outside(t.Context(), t, plainRun("cat; echo to stderr >&2"))
	cmd.Stdin = strings.NewReader("from stdin")
	status, stdout, stderr := finished(t, cmd)
	if status != 0 || stdout != "from stdin" || !strings.HasPrefix(stderr, "to stderr\n") {
		t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
}

func TestCommandRunsOnTheFirstHost(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/1000")
	_, stdout, _ := finished(t, outside(t.Context(), t, plainRun("hostname; env")))
	if !strings.HasPrefix(stdout, "a\n") {
		t.Errorf("host name: %q", stdout)
	}
	if strings.Contains(stdout, stageVar) || strings.Contains(stdout, "XDG_RUNTIME_DIR") {
		t.Errorf("environment of the command: %s", stdout)
	}
}

func TestLabInsideALab(t *testing.T) {
	inner, err := json.Marshal(plainRun("hostname; exit 5"))
	if err != nil {
		t.Fatal(err)
	}
	o := RunOptions{Options: twoPlain(), Command: []string{"/proc/self/exe", "run", string(inner)}}
	status, stdout, stderr := finished(t, outside(t.Context(), t, o))
	if status != 5 || stdout != "a\n" {
		t.Errorf("status %d, stdout %q, stderr %s", status, stdout, stderr)
	}
}

// signalRun is a lab whose command tells which signals it gets.
func signalRun() RunOptions {
	return RunOptions{Options: twoPlain(), Command: []string{"/proc/self/exe", "signals"}}
}

func TestSignalsReachTheCommandOnce(t *testing.T) {
	for _, s := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH} {
		cmd := outside(t.Context(), t, signalRun())
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		readTo(t, stdout, "up")
		if err := cmd.Process.Signal(s); err != nil {
			t.Error(err)
		}
		readTo(t, stdout, unix.SignalName(s))
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		if rest, err := io.ReadAll(stdout); err != nil || string(rest) != "SIGTERM\n" {
			t.Errorf("after %v and SIGTERM came %q, %v", s, rest, err)
		}
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != 41 {
			t.Errorf("%v: status %d, want 41", s, got)
		}
	}
}

func TestSignalBeforeTheCommandEndsTheLab(t *testing.T) {
	o := plainRun("echo must not run")
	o.Services = []Service{{Host: "b", Command: "echo started >&2; exec sleep 1000"}}
	o.Verbose = true
	cmd := outside(t.Context(), t, o)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stdout strings.Builder
	cmd.Stdout = &stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	readTo(t, stderr, "b| started") // and now it waits for a listening socket
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, stderr); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 128+15 || stdout.Len() != 0 {
		t.Errorf("status %d, want 143; stdout %q", got, stdout.String())
	}
}

func TestKilledLabLeavesNothing(t *testing.T) {
	o := plainRun("setsid sleep 1000 & (trap '' TERM HUP INT; setsid sh -c 'sleep 1001 & wait') & echo up; sleep 1002")
	o.Services = []Service{{Host: "b", Command: "exec nc -lk 80"}}
	o.Pcap = t.TempDir()
	killAndLook(t, outside(t.Context(), t, o), "sleep 100", "nc -lk")
}

// killAndLook kills a lab whose command has said up, and looks for what is left: mounts,
// and processes that begin with one of the texts. What holds the command's standard
// output open are the processes of the lab: at its end of file they are all gone.
func killAndLook(t *testing.T, cmd *exec.Cmd, texts ...string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	readTo(t, r, "up")
	if len(processes(t, texts...)) == 0 {
		t.Errorf("before the kill there is none of %q", texts)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil {
		t.Errorf("after %q: %v: a process of the killed lab lives on", rest, err)
	}
	if left := processes(t, texts...); len(left) > 0 {
		t.Errorf("processes left: %q", left)
	}
	if after, err := os.ReadFile("/proc/self/mountinfo"); err != nil || string(after) != string(mounts) {
		t.Errorf("mounts have changed: %v\n%s\nwas\n%s", err, after, mounts)
	}
	if _, err := os.Stat("/run/lab"); err == nil {
		t.Error("/run/lab exists outside")
	}
}

// processes returns the command lines that contain one of the texts.
func processes(t *testing.T, texts ...string) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		b, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil {
			continue
		}
		line := strings.ReplaceAll(string(b), "\x00", " ")
		for _, text := range texts {
			if strings.HasPrefix(line, text) {
				found = append(found, line)
			}
		}
	}
	return found
}

func TestServersEndWithTheLab(t *testing.T) {
	o := plainRun("true")
	o.Services = []Service{
		{Host: "b", Command: "trap '' TERM; nc -lk 80 | cat"}, // has to be killed
		{Host: "b", Command: "exec nc -lk 81"},
	}
	cmd := outside(t.Context(), t, o)
	status, _, stderr := finished(t, cmd)
	if status != 0 {
		t.Errorf("status %d: %s", status, stderr)
	}
	if left := processes(t, "nc -lk"); len(left) > 0 {
		t.Errorf("processes left: %q", left)
	}
}

func TestServerThatEndsFirst(t *testing.T) {
	o := plainRun("echo must not run")
	o.Services = []Service{{Host: "b", Command: "echo no configuration >&2; exit 3"}}
	status, stdout, stderr := finished(t, outside(t.Context(), t, o))
	const want = "tcpcrypt: server \"echo no configuration >&2; exit 3\" on host b ended by itself: exit status 3\n    b| no configuration\n"
	if status != 1 || stdout != "" || stderr != want {
		t.Errorf("status %d, stdout %q, stderr %q, want %q", status, stdout, stderr, want)
	}
}

func TestReportAsJSON(t *testing.T) {
	o := plainRun("echo something else >&2; exit 3")
	o.JSON, o.Pcap = true, t.TempDir()
	status, stdout, stderr := finished(t, outside(t.Context(), t, o))
	if status != 3 || stdout != "" {
		t.Errorf("status %d, stdout %q", status, stdout)
	}
	lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
	if len(lines) != 2 {
		t.Fatalf("standard error has %d lines, want one of the command and one of JSON: %s", len(lines), stderr)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(lines[1]), &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"version", "hosts", "connections", "captures", "exit_status"} {
		if got[key] == nil {
			t.Errorf("%s is missing or null in %s", key, lines[1])
		}
	}
	if got["exit_status"] != 3.0 || len(got["hosts"].([]any)) != 2 || len(got["captures"].([]any)) != 2 {
		t.Errorf("report: %s", lines[1])
	}
}
