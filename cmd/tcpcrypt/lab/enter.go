package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Three processes of the same program make a lab:
//
//	outside  what the user started; waits, passes signals on, gives the terminal back
//	init     process 1 of the new PID namespace; reaps orphans, ends when outside does
//	inside   does the work; Inside reports true
//
// stageVar tells them apart. Together with the process's place in the PID namespace
// it is proof against a lab started inside a lab, which inherits the variable.
const (
	stageVar    = "TCPCRYPT_LAB_STAGE"
	stageInit   = "init"
	stageInside = "inside"
	terminalVar = "TCPCRYPT_LAB_TERMINAL" // set if outside was the terminal's foreground job
	lifelineFD  = 3                       // in init: end of file when outside has gone
)

// passedOn are the signals that a lab hands to its command.
var passedOn = []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH}

// Process says how the calling program is executed again by Enter.
type Process struct {
	Args   []string // after the program's name; has to lead to the same call of Enter or Main
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// Inside reports whether this process has been executed by Enter and may call New.
func Inside() bool {
	return os.Getenv(stageVar) == stageInside && os.Getppid() == 1
}

// Main runs body inside and returns its status, for programs that do nothing else:
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }
//
// Whatever precedes the call is done three times.
func Main(body func() int) int {
	if Inside() {
		return body()
	}
	status, err := Enter(Process{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
		var refused *Error
		if errors.As(err, &refused) && refused.Fix != "" {
			fmt.Fprintf(os.Stderr, "  try: %s\n", refused.Fix)
		}
		return 1
	}
	return status
}

// Enter executes the calling program again in fresh PID, mount, network and IPC
// namespaces, and in a user namespace in which it is root if it is not already,
// passes signals on, waits and returns the exit status (128 plus the number if a
// signal ended it). It must not be called where Inside reports true. The error is an
// *Error, with a remedy where one is known, if the kernel refuses.
func Enter(p Process) (int, error) {
	if os.Getenv(stageVar) == stageInit && os.Getpid() == 1 {
		return runInit(p.Args)
	}
	// The write end is never written to. It closes when this process ends, however it
	// ends, and init takes that as its own end.
	lifeline, held, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer func() { _, _ = held.Close(), lifeline.Close() }() // neither is written to

	cmd := exec.Command("/proc/self/exe", p.Args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.Stdin, p.Stdout, p.Stderr
	cmd.ExtraFiles = []*os.File{lifeline}
	cmd.Env = append(withoutStage(os.Environ()), stageVar+"="+stageInit)
	foreground := isForeground(p.Stdin)
	if foreground {
		cmd.Env = append(cmd.Env, terminalVar+"=1")
	}
	cmd.WaitDelay = time.Second // an input that is not a file and does not end must not hold us
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		Setpgid:    true, // what the terminal sends is for the command alone
	}
	if !mayMakeNamespaces() {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}

	sigs := make(chan os.Signal, 16) // a burst; more of the same tell the command nothing new
	signal.Notify(sigs, passedOn...)
	defer signal.Stop(sigs)
	if err := cmd.Start(); err != nil {
		return 0, namespacesRefused(err, thisKernel())
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-sigs:
			// An error means that it has just ended, which the other case sees.
			_ = cmd.Process.Signal(s)
		case err := <-ended:
			if foreground {
				takeTerminal()
			}
			if cmd.ProcessState == nil {
				return 0, err
			}
			return exitStatus(cmd.ProcessState.Sys().(syscall.WaitStatus)), nil
		}
	}
}

// runInit is the whole life of the PID namespace's first process.
func runInit(args []string) (int, error) {
	unix.CloseOnExec(lifelineFD)
	go func() {
		// Never joined: it ends with the process, which its end ends.
		_, _ = io.Copy(io.Discard, os.NewFile(lifelineFD, "lifeline"))
		os.Exit(128 + int(unix.SIGKILL))
	}()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 0, &Error{What: "make the new mount namespace private", Err: err}
	}
	// Without it, process numbers in /proc are those outside. Containers that cover
	// parts of /proc cannot have another one (EPERM); the lab works there, ps does not.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil && !errors.Is(err, unix.EPERM) {
		return 0, &Error{What: "mount /proc for the new PID namespace", Err: err}
	}

	sigs := make(chan os.Signal, 16)
	signal.Notify(sigs, passedOn...)
	env := append(withoutStage(os.Environ()), stageVar+"="+stageInside)
	if foreground := os.Getenv(terminalVar); foreground != "" {
		env = append(env, terminalVar+"="+foreground)
	}
	inside, err := os.StartProcess("/proc/self/exe", append([]string{os.Args[0]}, args...), &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Env:   env,
	})
	if err != nil {
		return 0, err
	}
	go func() {
		for s := range sigs {
			_ = inside.Signal(s) // it may have ended: then so do we
		}
	}()
	// Not inside.Wait: this loop takes the orphans of the whole lab as well.
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, err
		case pid == inside.Pid:
			return exitStatus(status), nil
		}
	}
}

// exitStatus is the shell's reading of a status.
func exitStatus(s syscall.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// mayMakeNamespaces reports whether the process is root with CAP_SYS_ADMIN. Such a
// root needs no user namespace, and in a container may be forbidden to have one.
func mayMakeNamespaces() bool {
	if os.Geteuid() != 0 {
		return false
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// withoutStage is env without the variables that are ours.
func withoutStage(env []string) []string {
	var kept []string
	for _, v := range env {
		if !strings.HasPrefix(v, stageVar+"=") && !strings.HasPrefix(v, terminalVar+"=") {
			kept = append(kept, v)
		}
	}
	return kept
}

// isForeground reports whether in is the controlling terminal and we its foreground job.
func isForeground(in io.Reader) bool {
	f, ok := in.(*os.File)
	if !ok || f != os.Stdin {
		return false
	}
	group, err := unix.IoctlGetInt(int(os.Stdin.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// takeTerminal makes this process's group the foreground job of the terminal on
// standard input. Nothing may be started afterwards: it would inherit the disposition.
func takeTerminal() {
	signal.Ignore(unix.SIGTTOU) // or we stop, being in the background
	_ = unix.IoctlSetPointerInt(int(os.Stdin.Fd()), unix.TIOCSPGRP, unix.Getpgrp())
}
