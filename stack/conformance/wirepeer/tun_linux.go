package wirepeer

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OpenTUN makes the TUN device of that name in the network namespace of the calling
// thread. It has no offloads: the kernel cuts super-segments and fills in checksums
// before it hands packets over. Setting it up and routing to it is the caller's.
func OpenTUN(name string) (Link, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make TUN device %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
