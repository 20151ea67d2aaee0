package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strings"

	"golang.org/x/sys/unix"
)

// An Error is what kept a lab from standing, with what to do about it.
type Error struct {
	What string // completes "cannot ..."
	Err  error
	Fix  string // a command or a setting, in words; may be empty
}

func (e *Error) Error() string { return "cannot " + e.What + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Hint returns the remedy, for those who print errors.
func (e *Error) Hint() string { return e.Fix }

// An ExitStatus is the status of a command that the lab has run, as an error: it has
// said everything that there was to say.
type ExitStatus int

func (s ExitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// ExitStatus returns the status that the process should exit with.
func (s ExitStatus) ExitStatus() int { return int(s) }

// kernel is what namespacesRefused asks of the system it runs on.
type kernel struct {
	root    bool                     // effective user 0
	seccomp bool                     // a filter is in force, as in a container
	sysctl  func(name string) string // "" if there is no such
}

func thisKernel() kernel {
	status, err := os.ReadFile("/proc/self/status")
	return kernel{
		root:    os.Geteuid() == 0,
		seccomp: err == nil && strings.Contains(string(status), "\nSeccomp:\t2"),
		sysctl: func(name string) string {
			b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
			if err != nil {
				return ""
			}
			return strings.TrimSpace(string(b))
		},
	}
}

// namespacesRefused finds out why the kernel would not make the lab's namespaces.
func namespacesRefused(err error, k kernel) error {
	e := &Error{What: "create the lab's namespaces", Err: err}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS) {
		for _, kind := range []string{"user", "net", "mnt", "pid", "ipc", "uts"} {
			if name := "user.max_" + kind + "_namespaces"; k.sysctl(name) == "0" {
				e.What += ", which " + name + " = 0 forbids"
				e.Fix = "sudo sysctl " + name + "=10000"
				return e
			}
		}
	}
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		e.Fix = "a kernel with CONFIG_USER_NS, CONFIG_NET_NS and CONFIG_PID_NS, or run it as root"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		e.Fix = "raise user.max_*_namespaces (sysctl), or nest fewer labs and containers"
	case !errors.Is(err, fs.ErrPermission):
	case k.root:
		e.What += ", since this root has no CAP_SYS_ADMIN"
		e.Fix = "docker run --privileged, or --cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined --device /dev/net/tun"
	case k.sysctl("kernel.unprivileged_userns_clone") == "0":
		e.What += ", which kernel.unprivileged_userns_clone = 0 forbids to users"
		e.Fix = "sudo sysctl kernel.unprivileged_userns_clone=1, or run it as root"
	case k.sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1":
		e.What += ", which kernel.apparmor_restrict_unprivileged_userns = 1 (Ubuntu's AppArmor) forbids to users"
		e.Fix = "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run it as root"
	case k.seccomp:
		e.What += ", which a seccomp filter seems to forbid (a container's?)"
		e.Fix = "docker run --privileged, or outside of the container"
	default:
		e.Fix = "running it as root"
	}
	return e
}

// tunDevice is where the daemon finds the kernel's TUN driver.
const tunDevice = "/dev/net/tun"

// CheckTUN opens the TUN device once, so that a lab that needs it fails before it has
// started anything, in words that say what to do. The error is an *Error.
func CheckTUN() error { return checkTUN(tunDevice) }

func checkTUN(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		return f.Close()
	}
	cause := err
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		cause = p.Err
	}
	e := &Error{What: "open " + path + ", which every host but a plain one needs", Err: cause}
	const container = "in a container: docker run --device /dev/net/tun"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Fix = "sudo modprobe tun; " + container
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		e.Fix = "sudo modprobe tun"
	case errors.Is(err, unix.EACCES):
		mode, who := "", "this user"
		if info, err := os.Stat(path); err == nil {
			mode = fmt.Sprintf(" (its mode is %04o)", info.Mode().Perm())
		}
		// Root without the right is root of a user namespace, as everybody is inside.
		if u, err := user.Current(); err == nil && u.Uid != "0" {
			who = u.Username
		}
		e.What = fmt.Sprintf("open %s as %s%s, which every host but a plain one needs", path, who, mode)
		e.Fix = "sudo chmod 0666 " + path + " (as most distributions have it), or run it as root"
	case errors.Is(err, unix.EPERM):
		e.Fix = container
	}
	return e
}
