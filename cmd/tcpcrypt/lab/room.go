package lab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// runDir is the directory that every host has for itself.
const runDir = "/run"

// hostsFile is what /etc/hosts says on every host.
func hostsFile(hosts []*Host) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1 localhost\n")
	if haveIPv6() {
		b.WriteString("::1 localhost ip6-localhost ip6-loopback\n")
	}
	for _, h := range hosts {
		fmt.Fprintf(&b, "%v %s %s.ip4\n", h.Addr4(), h.Name(), h.Name())
		if haveIPv6() {
			fmt.Fprintf(&b, "%v %s %s.ip6\n", h.Addr6(), h.Name(), h.Name())
		}
	}
	return b.Bytes()
}

// hostsFromFilesOnly is an nsswitch.conf that asks /etc/hosts for names of hosts and
// nobody else: no resolver of the machine is reachable, some make programs wait, and
// some answer before the file is looked at.
func hostsFromFilesOnly(nsswitch []byte) []byte {
	var b bytes.Buffer
	for lines := bufio.NewScanner(bytes.NewReader(nsswitch)); lines.Scan(); {
		if !strings.HasPrefix(strings.TrimSpace(lines.Text()), "hosts:") {
			b.WriteString(lines.Text() + "\n")
		}
	}
	b.WriteString("hosts: files\n")
	return b.Bytes()
}

// furnish turns the new mount namespace of the calling thread into host name's.
func furnish(name string, hosts []byte) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return &Error{What: "set the host name", Err: err}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return &Error{What: "make a mount namespace private", Err: err}
	}
	if err := freshRun(); err != nil {
		return &Error{What: "give a host its own " + runDir, Err: err}
	}
	own := filepath.Join(runDir, "lab")
	if err := os.Mkdir(own, 0o755); err != nil {
		return err
	}
	if err := cover("/etc/hosts", filepath.Join(own, "hosts"), hosts); err != nil {
		return &Error{What: "give a host its own /etc/hosts", Err: err, Fix: "sudo touch /etc/hosts, if there is none"}
	}
	if nsswitch, err := os.ReadFile("/etc/nsswitch.conf"); err == nil {
		if err := cover("/etc/nsswitch.conf", filepath.Join(own, "nsswitch.conf"), hostsFromFilesOnly(nsswitch)); err != nil {
			return &Error{What: "give a host its own /etc/nsswitch.conf", Err: err}
		}
	}
	return freshSys(filepath.Join(own, "sys"))
}

// freshRun mounts an empty /run with the directories, empty too, that services expect
// there (/run/sshd, /run/postgresql).
func freshRun() error {
	old, err := os.ReadDir(runDir)
	if err != nil {
		return err
	}
	var dirs []fs.FileInfo
	for _, entry := range old {
		if info, err := entry.Info(); err == nil && info.IsDir() { // it may have gone in between
			dirs = append(dirs, info)
		}
	}
	if err := unix.Mount("tmpfs", runDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	for _, info := range dirs {
		path := filepath.Join(runDir, info.Name())
		if info.Name() == "lab" {
			continue
		}
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, info.Mode()); err != nil {
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			// In a user namespace there is nobody else to give it to.
			if err := os.Chown(path, int(stat.Uid), int(stat.Gid)); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
				return err
			}
		}
	}
	return nil
}

// cover writes content to private and shows it at path, which has to exist.
func cover(path, private string, content []byte) error {
	if err := os.WriteFile(private, content, 0o644); err != nil {
		return err
	}
	if err := os.Chmod(private, 0o644); err != nil { // whatever the umask
		return err
	}
	return unix.Mount(private, path, "", unix.MS_BIND, "")
}

// freshSys mounts a /sys that shows the devices of the thread's network namespace,
// keeping the control groups. Where the kernel refuses, because the container's own
// /sys has covered parts, the outer one stays: little looks there for interfaces.
func freshSys(at string) error {
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("sysfs", at, "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil
		}
		return &Error{What: "mount /sys for a host", Err: err}
	}
	const groups = "/fs/cgroup"
	if _, err := os.Stat("/sys" + groups); err == nil {
		if err := unix.Mount("/sys"+groups, at+groups, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return &Error{What: "keep /sys" + groups + " on a host", Err: err}
		}
	}
	if err := unix.Mount(at, "/sys", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return &Error{What: "mount /sys for a host", Err: err}
	}
	return unix.Unmount(at, unix.MNT_DETACH)
}
