package tun

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"

	wgtun "golang.zx2c4.com/wireguard/tun"
)

// Options says what device to make.
type Options struct {
	// Name of the device, "tcpcrypt0" say; a "%d" in it becomes a free number (Linux).
	Name string

	// MTU of the device in bytes, 1280 (IPv6's minimum, RFC 8200, section 5) to 65535.
	MTU int

	// Log receives a line when an offload is not to be had. nil: none.
	Log *slog.Logger

	// NoOffload cuts and sums packets in software although the kernel could be spared
	// it: for finding out whether a fault is in the offloads.
	NoOffload bool
}

// A Device is a TUN device of our making. It is not persistent: it goes, and routes
// and addresses with it, when it is closed or the process ends.
type Device struct {
	dev     wgtun.Device
	name    string
	offload bool // packets carry a virtio-net header, which we read and write ourselves
	log     *slog.Logger

	wasUp   atomic.Bool
	claimed atomic.Bool // has an endpoint
	closed  chan struct{}
	watcher sync.WaitGroup

	mu  sync.Mutex // guards err
	err error      // why closed is closed
}

// Open creates a TUN device. It is down and has no address: that is for the caller
// to change. The error is an *OpenError; on Linux a name that is taken gives EBUSY,
// missing rights EPERM, a missing /dev/net/tun ENOENT or ENODEV.
func Open(o Options) (*Device, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := checkOptions(o); err != nil {
		return nil, err
	}
	dev, offload, err := open(o)
	if err != nil {
		return nil, &OpenError{Name: o.Name, Err: err, hint: openHint(err)}
	}
	d := &Device{dev: dev, offload: offload, log: o.Log, closed: make(chan struct{})}
	d.watcher.Go(d.watch) // from now on: the channel of events must be emptied
	if d.name, err = dev.Name(); err != nil {
		_ = d.Close()
		return nil, &OpenError{Name: o.Name, Err: err}
	}
	return d, nil
}

// watch follows the events of the device until it is closed.
func (d *Device) watch() {
	for ev := range d.dev.Events() {
		switch up, known := isUp(d.dev, ev); {
		case !known:
		case up:
			d.wasUp.Store(true)
		default:
			d.sawDown()
		}
	}
}

// sawDown is called when the kernel says that the device is down. It is before it is
// first set up, and that is fine.
func (d *Device) sawDown() {
	if d.wasUp.Load() {
		d.gone(ErrDown)
	}
}

// gone closes the channel of Closed, for the first reason that is given.
func (d *Device) gone(why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		d.err = why
		close(d.closed)
	}
}

// closing reports whether Close was called.
func (d *Device) closing() bool { return errors.Is(d.Err(), ErrClosed) }

// Name returns the name that the device was created with.
func (d *Device) Name() string { return d.name }

// MTU returns the current MTU of the device in bytes.
func (d *Device) MTU() (int, error) { return d.dev.MTU() }

// Closed returns a channel that is closed when the device is of no more use: closed,
// deleted by someone else, or taken down by someone else after it had been up. A
// deletion is noticed while an endpoint reads the device.
func (d *Device) Closed() <-chan struct{} { return d.closed }

// Err returns why the channel of Closed is closed: ErrClosed, ErrDeleted, ErrDown or
// what reading the device failed with; nil before.
func (d *Device) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Close removes the device and returns when its goroutines have gone. It may be
// called twice, and before or after the endpoint's.
func (d *Device) Close() error {
	d.gone(ErrClosed)
	err := d.dev.Close()
	d.watcher.Wait()
	return err
}
