package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/config"
	"github.com/tcpcrypt/tcpcrypt/routing"
	"github.com/tcpcrypt/tcpcrypt/stack"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
	"github.com/tcpcrypt/tcpcrypt/tun"
)

// stopLimit bounds each step of a stop that waits for others: the two ways of resetting
// what is captured, and the end of the stack.
const stopLimit = 3 * time.Second

// Options is what Run needs.
type Options struct {
	Config *config.Config
	Socket string // path of the control socket
	Log    *slog.Logger
}

// Run does the daemon's work until ctx ends, and undoes it. nil means that ctx ended
// it and that all is as before. The line "ready" is logged once everything stands,
// and no line before has that word.
func Run(ctx context.Context, o Options) error {
	d := newDaemon(o)
	err := d.start(ctx)
	switch {
	case err == nil:
		d.sayReady()
		select {
		case <-ctx.Done():
			d.log.Info("stopping")
		case <-d.device.Closed():
			err = &Error{What: "go on", Err: d.device.Err(), Fix: "start it again; see what removed or disabled the device"}
		}
	case ctx.Err() != nil:
		err = nil // told to stop before it stood: not a failure, once undone
	}
	return errors.Join(err, d.stop())
}

// sayReady logs the line that others wait for, whatever the level of the log.
func (d *daemon) sayReady() {
	r := slog.NewRecord(time.Now(), slog.LevelInfo, "ready", 0)
	r.AddAttrs(slog.String("device", d.device.Name()), slog.String("socket", d.o.Socket),
		slog.Int("outbound", len(d.o.Config.Outbound)), slog.Int("inbound", len(d.o.Config.Inbound)))
	if err := d.log.Handler().Handle(context.Background(), r); err != nil {
		d.log.Debug("nobody reads the log", slog.Any("err", err))
	}
}

// A daemon is what start has set up so far.
type daemon struct {
	o   Options
	log *slog.Logger

	config routing.Config
	table  *routing.Table
	server *server
	device *tun.Device
	host   *routing.Host
	stack  *stack.Stack
	cache  *tcpcrypt.Cache
	conns  chan struct{} // closed once stack is set, or never will be
}

func newDaemon(o Options) *daemon {
	return &daemon{o: o, log: o.Log, conns: make(chan struct{}), cache: tcpcrypt.NewCache(cacheOptions(o.Config.Crypto))}
}

// start sets everything up, in the order of routing's package comment.
func (d *daemon) start(ctx context.Context) error {
	d.config = d.o.Config.Routing()
	if err := d.leaveOutIPv6(); err != nil {
		return err
	}
	if c := d.o.Config.Crypto; c.Nonce == 0 && d.o.Config.Resumes() {
		d.log.Warn("resumption without a nonce (crypto.nonce = 0): a copy of this machine in mid-run may use a key twice; 8 is safe")
	}
	var err error
	if d.table, err = routing.NewTable(d.config); err != nil {
		return err
	}
	if err := routing.Check(ctx, d.config); err != nil {
		return err
	}
	if d.server, err = listen(d.o.Socket, d, d.log); err != nil {
		return err
	}
	if d.device, err = tun.Open(tun.Options{Name: d.config.Interface, MTU: d.config.MTU, Log: d.log}); err != nil {
		return err
	}
	if d.host, err = routing.Apply(ctx, d.config, d.log); err != nil {
		return err
	}
	flows, err := d.host.Existing(ctx)
	if err != nil {
		return err
	}
	link, err := tun.NewEndpoint(d.device, tun.EndpointOptions{Bypass: d.bypass, Log: d.log})
	if err != nil {
		return err
	}
	d.stack, err = stack.New(d.stackOptions(link, flows))
	close(d.conns)
	if err != nil {
		link.Close()
		return &Error{What: "start the TCP stack", Err: err}
	}
	return ctx.Err()
}

// leaveOutIPv6 leaves IPv6's half out where the kernel has none.
func (d *daemon) leaveOutIPv6() error {
	if routing.IPv6() {
		return nil
	}
	for i, o := range d.config.Outbound {
		for _, p := range o.To {
			if p.Addr().Is6() {
				return &Error{What: fmt.Sprintf("capture %s (outbound[%d].to)", p, i), Err: errors.New("IPv6 is off here"),
					Fix: "take the IPv6 prefixes out of the configuration, or turn IPv6 on: sysctl net.ipv6.conf.all.disable_ipv6=0"}
			}
		}
	}
	d.config.Host6, d.config.Stack6 = netip.Addr{}, netip.Addr{}
	d.log.Info("IPv6 is off here: only IPv4 is captured")
	return nil
}

// stop undoes what start did. It needs no context: it is bounded by itself.
func (d *daemon) stop() error {
	var errs []error
	if d.stack != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
		if err := d.stack.Reset(ctx); err != nil {
			d.log.Warn("not every connection was reset in time", slog.Any("err", err))
		}
		cancel()
	}
	if d.host != nil {
		// What the stack could not reset, before the rules that keep it from leaving go.
		ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
		if err := d.host.ResetCaptured(ctx); err != nil {
			d.log.Warn("not every captured socket was reset", slog.Any("err", err))
		}
		cancel()
		errs = append(errs, d.host.Close())
	}
	if d.stack != nil {
		errs = append(errs, within(stopLimit, d.stack.Close))
	}
	d.cache.Close() // no connection brings a session any more
	if d.device != nil {
		errs = append(errs, d.device.Close())
	}
	if d.server != nil {
		errs = append(errs, d.server.Close())
	}
	return errors.Join(errs...)
}

// within gives up waiting for f after limit: by then the host is as it was, and the
// process is about to end.
func within(limit time.Duration, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return errors.New("the TCP stack did not end in time")
	}
}

// bypass is asked by the device's reader, which New starts before it returns the
// stack: it waits, so that no packet of an older connection is judged without it.
func (d *daemon) bypass(packet []byte) bool {
	<-d.conns
	return d.stack != nil && d.stack.Bypass(packet)
}

// An Error is a step that could not be done.
type Error struct {
	What string // completes "cannot ..."
	Err  error
	Fix  string
}

func (e *Error) Error() string { return "cannot " + e.What + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Hint returns what to do about it.
func (e *Error) Hint() string { return e.Fix }
