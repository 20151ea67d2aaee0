//go:build !linux

package tun

import (
	"errors"
	"log/slog"
	"os"

	wgtun "golang.zx2c4.com/wireguard/tun"
)

func open(o Options) (dev wgtun.Device, offload bool, err error) {
	dev, err = wgtun.CreateTUN(o.Name, o.MTU)
	return dev, false, err
}

func openHint(err error) string {
	if errors.Is(err, os.ErrPermission) {
		return "run as administrator"
	}
	return ""
}

// newCarrier returns the path that works everywhere; there is no other here.
func newCarrier(d *Device, c *counters, _ *slog.Logger) (carrier, error) {
	return newPortable(d, c), nil
}

// deviceDown reports whether err of a write means that the device is down.
func deviceDown(error) bool { return false }

// refusedOffload reports whether err of a write means that the kernel did not like
// the joined form of the packets.
func refusedOffload(error) bool { return false }

// isUp reports whether the device is up, going by an event.
func isUp(_ wgtun.Device, ev wgtun.Event) (up, known bool) {
	return ev&wgtun.EventUp != 0, ev&(wgtun.EventUp|wgtun.EventDown) != 0
}
