package lab

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// openTerminal returns both ends of a pseudo terminal.
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	return master, slave
}

// onTerminal starts cmd as the foreground job of a new session on a terminal.
func onTerminal(t *testing.T, cmd *exec.Cmd) (master *os.File) {
	t.Helper()
	master, slave := openTerminal(t)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return master
}

func TestInterruptFromTheTerminalComesOnce(t *testing.T) {
	cmd := outside(t.Context(), t, signalRun())
	master := onTerminal(t, cmd)
	readTo(t, master, "up\r")
	if _, err := master.Write([]byte{3}); err != nil { // control-C
		t.Fatal(err)
	}
	readTo(t, master, "SIGINT\r")
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var next [8]byte
	if _, err := io.ReadFull(master, next[:]); err != nil || string(next[:]) != "SIGTERM\r" {
		t.Errorf("after SIGINT and SIGTERM came %q, %v", next, err)
	}
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 41 {
		t.Errorf("status %d, want 41", got)
	}
}

func TestTerminalIsTheCommandsAndComesBack(t *testing.T) {
	lab := outside(t.Context(), t, plainRun(`read -r line; echo "got $line"`))
	// A shell with job control around it: its next command needs the terminal again.
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{"-mc", `"$@"; read -r line; echo "then $line"; exit 9`, "sh", lab.Path}, lab.Args[1:]...)...)
	cmd.Env = lab.Env
	cmd.Args[4] = fmt.Sprintf("/proc/%d/exe", os.Getpid())
	master := onTerminal(t, cmd)
	if _, err := master.WriteString("one\ntwo\n"); err != nil {
		t.Fatal(err)
	}
	readTo(t, master, "got one\r")
	readTo(t, master, "then two\r")
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 9 {
		t.Errorf("status %d, want 9", got)
	}
}

// The shell around the lab does not know that the command has stopped.
func TestCommandThatStopsGoesOn(t *testing.T) {
	cmd := outside(t.Context(), t, plainRun("echo up; kill -STOP $$; exit 8"))
	master := onTerminal(t, cmd)
	readTo(t, master, "up\r")
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 8 {
		t.Errorf("status %d, want 8", got)
	}
}
