package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// HostOptions describes one host of a lab.
type HostOptions struct {
	Name  string // see ValidName
	Plain bool   // no daemon: the kernel's own TCP
	// Config is the daemon's configuration; "" means DefaultConfig. On the host it is
	// the file /run/tcpcrypt.toml.
	Config string
}

// Options describes a lab.
type Options struct {
	Hosts   []HostOptions // one at least
	Program string        // the tcpcrypt binary; "" means this program
	Pcap    string        // directory for HOST.pcapng, one for each link; "" captures nothing
	// Log takes what daemons and servers write, a line at a time, each led by its
	// host's name. nil keeps the last lines only, to be shown if something fails.
	Log LineWriter
}

// A LineWriter takes whole lines; it is called from several goroutines.
type LineWriter interface {
	WriteLine(host, line string)
}

// A Lab is a set of hosts. Its methods may be called from several goroutines.
type Lab struct {
	hosts    []*Host
	router   *space
	captures []*capture

	mu     sync.Mutex
	closed bool
}

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?$`)

// ValidName reports whether a host may have that name: 1 to 12 lower-case letters,
// digits and inner hyphens, not localhost.
func ValidName(name string) bool { return validName.MatchString(name) && name != "localhost" }

// New makes a lab and starts its daemons. It returns once each has said that it is
// ready, or with everything taken down again; Inside has to be true. ctx is for New
// alone: the lab lives until Close.
func New(ctx context.Context, o Options) (_ *Lab, err error) {
	if !Inside() {
		return nil, errors.New("lab.New called outside of a lab: see lab.Main")
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	l := &Lab{}
	defer func() {
		if err != nil {
			_ = l.Close() // what fails now is for the most part a consequence
		}
	}()

	l.router, err = newSpace(unix.CLONE_NEWNET, func() error {
		if err := readyNetwork(); err != nil {
			return &Error{What: "prepare the router", Err: err}
		}
		return readyRouter()
	})
	if err != nil {
		return nil, err
	}
	for i, ho := range o.Hosts {
		l.hosts = append(l.hosts, &Host{lab: l, options: ho, link: newLink(i+1, ho.Name), log: o.Log, running: make(map[int]struct{})})
	}
	names := hostsFile(l.hosts)
	for _, h := range l.hosts {
		if err := h.build(names); err != nil {
			return nil, err
		}
		if o.Pcap == "" {
			continue
		}
		c, err := startCapture(l.router, h, filepath.Join(o.Pcap, h.Name()+".pcapng"))
		if err != nil {
			return nil, &Error{What: "capture the link of host " + h.Name(), Err: err}
		}
		l.captures = append(l.captures, c)
	}
	for _, h := range l.hosts {
		if err := h.link.awaitUp(ctx, l.router, h.space); err != nil {
			return nil, &Error{What: "bring up the link of host " + h.Name(), Err: err}
		}
	}
	if err := l.startDaemons(ctx, o.Program); err != nil {
		return nil, err
	}
	return l, nil
}

// check finds what is wrong with the options before anything is made.
func (o *Options) check() error {
	if len(o.Hosts) == 0 || len(o.Hosts) > MaxHosts {
		return fmt.Errorf("a lab has 1 to %d hosts, not %d", MaxHosts, len(o.Hosts))
	}
	seen := make(map[string]bool)
	daemons := false
	for _, h := range o.Hosts {
		if !ValidName(h.Name) {
			return fmt.Errorf("%q cannot be the name of a host: 1 to 12 lower-case letters, digits and inner hyphens can", h.Name)
		}
		if seen[h.Name] {
			return fmt.Errorf("two hosts named %s", h.Name)
		}
		seen[h.Name] = true
		daemons = daemons || !h.Plain
	}
	if daemons {
		if err := CheckTUN(); err != nil {
			return err
		}
	}
	if o.Pcap != "" {
		if err := os.MkdirAll(o.Pcap, 0o755); err != nil {
			return &Error{What: "make the directory for captures", Err: err}
		}
	}
	return nil
}

// Host returns the host of that name; it panics if there is none, being for names
// that the caller has chosen.
func (l *Lab) Host(name string) *Host {
	i := slices.IndexFunc(l.hosts, func(h *Host) bool { return h.Name() == name })
	if i < 0 {
		panic("lab: no host " + name)
	}
	return l.hosts[i]
}

// Hosts returns the hosts in the order in which they were given.
func (l *Lab) Hosts() []*Host { return slices.Clone(l.hosts) }

// Router runs f on a thread of the router's network namespace, as Host.Do does.
func (l *Lab) Router(f func() error) error { return l.router.do(f) }

// Captures returns the captures in the order of the hosts. The files grow as packets
// pass; they and the counts are complete after Close.
func (l *Lab) Captures() []Capture {
	var all []Capture
	for _, c := range l.captures {
		r := Capture{Host: c.host.Name(), File: c.path}
		select {
		case <-c.done:
			r.Packets, r.Lost = c.packets, c.lost
		default:
		}
		all = append(all, r)
	}
	return all
}

// Close stops servers, then daemons, then captures, kills what else runs on the hosts
// and takes them down. The error says what of it failed. It may be called twice.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()

	var errs []error
	l.StopServers()
	stopped := make([]error, len(l.hosts))
	var stopping sync.WaitGroup
	for i, h := range l.hosts {
		stopping.Go(func() { stopped[i] = h.stopDaemon() })
	}
	stopping.Wait()
	errs = append(errs, stopped...)
	for _, h := range l.hosts {
		h.killRest()
	}
	for _, c := range l.captures {
		errs = append(errs, c.close())
	}
	for _, h := range l.hosts {
		h.close()
	}
	if l.router != nil {
		l.router.close()
	}
	return errors.Join(errs...)
}

// StopServers stops the servers of all hosts, so that what they were still sending
// is in the daemons' accounts.
func (l *Lab) StopServers() {
	for _, h := range l.hosts {
		h.stopServers()
	}
}

// startDaemons starts them all before it waits for the first.
func (l *Lab) startDaemons(ctx context.Context, program string) error {
	for _, h := range l.hosts {
		if h.options.Plain {
			continue
		}
		if err := h.startDaemon(program); err != nil {
			return err
		}
	}
	for _, h := range l.hosts {
		if h.daemon == nil {
			continue
		}
		if err := h.daemon.awaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}
