package tun

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

const cloneDevice = "/dev/net/tun"

// offloads is what may be left undone in packets from the kernel. Not UDP's: netstack
// takes no super-datagrams.
const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6

// txQueueLen is how many packets wait in the device for us before the kernel drops
// them. The default of 500 is a third of a megabyte when they are not super-segments:
// of a single stream at full speed one in ten was lost.
const txQueueLen = 4096

// open makes the device. We open the file ourselves, so that a device of that name
// which exists already, a persistent one say, is an error and not ours by mistake;
// the wireguard package then watches it, and reads and writes it where we do not.
func open(o Options) (dev wgtun.Device, offload bool, err error) {
	dev, err = openFile(o, unix.IFF_VNET_HDR)
	if err == nil && o.NoOffload {
		return dev, false, nil
	}
	if err == nil {
		if err = setOffloads(dev.File()); err == nil {
			return dev, true, nil
		}
		_ = dev.Close()
	} else if !errors.Is(err, errOffload) {
		return nil, false, err
	}
	o.Log.Warn("no offloads on this kernel, packets are cut and summed in software",
		slog.String("device", o.Name), slog.Any("err", err))
	dev, err = openFile(o, 0)
	return dev, false, err
}

var errOffload = errors.New("offload refused")

func openFile(o Options, flags uint16) (wgtun.Device, error) {
	ifr, err := unix.NewIfreq(o.Name)
	if err != nil {
		return nil, fmt.Errorf("device name: %w", err)
	}
	fd, err := unix.Open(cloneDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: cloneDevice, Err: err}
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_TUN_EXCL | flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("TUNSETIFF", err)
	}
	setQueueLen(ifr)
	if flags&unix.IFF_VNET_HDR != 0 {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads); err != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("%w: %w", errOffload, os.NewSyscallError("TUNSETOFFLOAD", err))
		}
	}
	// Only now: the poller cannot watch the file before it is a device.
	file := os.NewFile(uintptr(fd), cloneDevice)
	dev, err := wgtun.CreateTUNFromFile(file, o.MTU)
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return dev, nil
}

// setQueueLen makes the queue of the device that ifr names longer. If that cannot be
// done it is as long as every TUN device's.
func setQueueLen(ifr *unix.Ifreq) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	ifr.SetUint32(txQueueLen)
	_ = unix.IoctlIfreq(fd, unix.SIOCSIFTXQLEN, ifr)
}

// setOffloads replaces the offloads that the wireguard package has chosen.
func setOffloads(file *os.File) error {
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	ctl := rc.Control(func(fd uintptr) {
		// With ECN a segment with CWR comes whole too. Not on every kernel.
		if err = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, offloads|unix.TUN_F_TSO_ECN); err != nil {
			err = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, offloads)
		}
	})
	return errors.Join(ctl, os.NewSyscallError("TUNSETOFFLOAD", err))
}

func openHint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return "sudo, or the capability CAP_NET_ADMIN and access to " + cloneDevice
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return "modprobe tun; in a container, --device " + cloneDevice
	case errors.Is(err, unix.EBUSY):
		return "another name, or remove the device that has it"
	default:
		return ""
	}
}

// newCarrier returns the path for packets of d.
func newCarrier(d *Device, c *counters, log *slog.Logger) (carrier, error) {
	if d.offload {
		return newOffload(d, c, log)
	}
	return newPortable(d, c), nil
}

// deviceDeleted reports whether err of a read or write means that the device is gone.
func deviceDeleted(err error) bool { return errors.Is(err, unix.EBADFD) }

// deviceDown reports whether err of a write means that the device is down.
func deviceDown(err error) bool { return errors.Is(err, unix.EIO) }

// refusedOffload reports whether err of a write means that the kernel did not like
// the joined form of the packets.
func refusedOffload(err error) bool { return errors.Is(err, unix.EINVAL) }

// isUp reports whether the device is up, and whether that could be found out. The
// event only says that it is time to ask: the wireguard package takes a device that
// refuses an empty write for one that is up, which a current kernel's does always,
// and of one taken down it may say no more than that the MTU is to be looked at.
func isUp(dev wgtun.Device, _ wgtun.Event) (up, known bool) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return false, false
	}
	rc, err := dev.File().SyscallConn()
	if err != nil {
		return false, false
	}
	// The name it has now, if someone has renamed it.
	ctl := rc.Control(func(fd uintptr) { err = unix.IoctlIfreq(int(fd), unix.TUNGETIFF, ifr) })
	if ctl != nil || err != nil {
		return false, false
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, false
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return false, false // moved to another network namespace, say
	}
	return ifr.Uint16()&unix.IFF_UP != 0, true
}
