package lab

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRefusedNamespacesNameTheRemedy(t *testing.T) {
	for _, tc := range []struct {
		name      string
		err       error
		kernel    kernel
		sysctls   map[string]string
		what, fix string
	}{
		{
			name: "Ubuntu", err: unix.EPERM, sysctls: map[string]string{"kernel.apparmor_restrict_unprivileged_userns": "1"},
			what: "AppArmor", fix: "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
		},
		{
			name: "Ubuntu, when writing the mapping", err: unix.EACCES, sysctls: map[string]string{"kernel.apparmor_restrict_unprivileged_userns": "1"},
			what: "AppArmor", fix: "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
		},
		{
			name: "Debian once", err: unix.EPERM, sysctls: map[string]string{"kernel.unprivileged_userns_clone": "0"},
			what: "unprivileged_userns_clone = 0", fix: "sysctl kernel.unprivileged_userns_clone=1",
		},
		{
			name: "no user namespaces", err: unix.ENOSPC, sysctls: map[string]string{"user.max_user_namespaces": "0"},
			what: "user.max_user_namespaces = 0", fix: "sysctl user.max_user_namespaces=10000",
		},
		{
			name: "no network namespaces, root", err: unix.ENOSPC, kernel: kernel{root: true}, sysctls: map[string]string{"user.max_net_namespaces": "0"},
			what: "user.max_net_namespaces = 0", fix: "sysctl user.max_net_namespaces=10000",
		},
		{name: "too deep", err: unix.ENOSPC, what: "no space left", fix: "nest fewer"},
		{name: "container's root", err: unix.EPERM, kernel: kernel{root: true, seccomp: true}, what: "no CAP_SYS_ADMIN", fix: "--device /dev/net/tun"},
		{name: "container's user", err: unix.EPERM, kernel: kernel{seccomp: true}, what: "seccomp", fix: "--privileged"},
		{name: "kernel without", err: unix.EINVAL, what: "invalid argument", fix: "CONFIG_USER_NS"},
		{name: "unknown", err: unix.EPERM, what: "not permitted", fix: "root"},
	} {
		tc.kernel.sysctl = func(name string) string { return tc.sysctls[name] }
		err := namespacesRefused(tc.err, tc.kernel)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(e.Error(), tc.what) || !strings.Contains(e.Hint(), tc.fix) {
			t.Errorf("%s: %v, try %q; want them to name %q and %q", tc.name, err, e.Hint(), tc.what, tc.fix)
		}
	}
}

// wrap runs cmd from a shell that does script first. prefix is a program to start it
// with, such as setpriv. The program's path may lead through directories that are not
// open to everybody, so the shell gets it as an open file.
func wrap(t *testing.T, cmd *exec.Cmd, script string, prefix ...string) {
	t.Helper()
	program, err := os.Open(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = program.Close() }) // read only
	cmd.ExtraFiles = []*os.File{program}
	args := append([]string{"sh", "-ec", script + `; exec "$@"`, "sh"}, prefix...)
	cmd.Args = append(append(args, "/proc/self/fd/3"), cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
}

// A user namespace of our own has limits of its own, so the real thing can be tried.
func TestRefusedByALimit(t *testing.T) {
	cmd := outside(t.Context(), t, plainRun("true"))
	wrap(t, cmd, "echo 0 > /proc/sys/user/max_net_namespaces")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	status, _, stderr := finished(t, cmd)
	const want = `tcpcrypt: cannot create the lab's namespaces, which user.max_net_namespaces = 0 forbids: fork/exec /proc/self/exe: no space left on device
  try: sudo sysctl user.max_net_namespaces=10000
`
	if status != 1 || stderr != want {
		t.Errorf("status %d, stderr\n%swant 1,\n%s", status, stderr, want)
	}
}

func TestRefusedTUN(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, tc := range []struct{ path, what, fix string }{
		{"/no/such/device", "no such file", "--device /dev/net/tun"},
		{socket, "no such device", "modprobe tun"}, // ENXIO, as with a node of a driver that is not there
	} {
		err := checkTUN(tc.path)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(e.Error(), tc.what) || !strings.Contains(e.Hint(), tc.fix) {
			t.Errorf("%s: %v; want it to name %q and %q", tc.path, err, tc.what, tc.fix)
		}
	}
}

func TestLabWithoutTUN(t *testing.T) {
	o := RunOptions{Options: Options{Hosts: []HostOptions{{Name: "a"}, {Name: "b", Plain: true}}}, Command: []string{"echo", "must not run"}}
	cmd := outside(t.Context(), t, o)
	wrap(t, cmd, "mount -t tmpfs tmpfs /dev/net")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	status, stdout, stderr := finished(t, cmd)
	const want = `tcpcrypt: cannot open /dev/net/tun, which every host but a plain one needs: no such file or directory
  try: sudo modprobe tun; in a container: docker run --device /dev/net/tun
`
	if status != 1 || stdout != "" || stderr != want {
		t.Errorf("status %d, stdout %q, stderr\n%swant 1,\n%s", status, stdout, stderr, want)
	}
}

// nobody is a prefix that runs a program as that user. Where the tests have no right to
// become another user, they run as an ordinary one themselves, and it is empty.
func nobody(t *testing.T) []string {
	t.Helper()
	if ids, err := os.ReadFile("/proc/self/uid_map"); err != nil || !strings.Contains(string(ids), "4294967295") {
		return nil
	}
	return []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}
}

func TestUserWithoutRightToTUN(t *testing.T) {
	o := RunOptions{Options: Options{Hosts: []HostOptions{{Name: "a"}, {Name: "b", Plain: true}}}, Command: []string{"echo", "must not run"}}
	cmd := outside(t.Context(), t, o)
	// A file that only the machine's own root may open.
	wrap(t, cmd, "mount --bind /etc/shadow /dev/net/tun", nobody(t)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	status, stdout, stderr := finished(t, cmd)
	if status != 1 || stdout != "" || !strings.Contains(stderr, "its mode is 0640") || !strings.Contains(stderr, "chmod 0666 /dev/net/tun") {
		t.Errorf("status %d, stdout %q, stderr %s", status, stdout, stderr)
	}
}

func TestLabOfAnOrdinaryUser(t *testing.T) {
	o := plainRun("id -u; curl -sS --max-time 10 http://b.ip4/ && curl -sS --max-time 10 http://b.ip6/")
	o.Services = []Service{{Host: "b", Command: "exec /proc/$PPID/exe web"}}
	cmd := outside(t.Context(), t, o)
	wrap(t, cmd, ":", nobody(t)...)
	status, stdout, stderr := finished(t, cmd)
	if status != 0 || stdout != "0\nhello\nhello\n" {
		t.Errorf("status %d, stdout %q, stderr %s", status, stdout, stderr)
	}
}
