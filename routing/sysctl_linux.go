package routing

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// A sysctlPath is a file below /proc/sys.
type sysctlPath string

func (p sysctlPath) read() (string, error) {
	b, err := os.ReadFile(path.Join("/proc/sys", string(p)))
	return strings.TrimSpace(string(b)), err
}

func (p sysctlPath) write(v string) error {
	return os.WriteFile(path.Join("/proc/sys", string(p)), []byte(v), 0o644)
}

func (p sysctlPath) exists() bool {
	_, err := os.Stat(path.Join("/proc/sys", string(p)))
	return err == nil
}

// A setting is a sysctl that we have changed.
type setting struct {
	path     sysctlPath
	old, new string
}

// sysctls remembers what was changed. note is told of each setting before it is
// made, so that it can be restored even by another process.
type sysctls struct {
	note func(setting) error
	done []setting
}

// set changes one value; the right one already there is not a change.
func (s *sysctls) set(p sysctlPath, value string) error {
	old, err := p.read()
	if err != nil || old == value {
		return err
	}
	c := setting{p, old, value}
	if err := s.note(c); err != nil {
		return err
	}
	if err := p.write(value); err != nil {
		return err
	}
	s.done = append(s.done, c)
	return nil
}

func (s *sysctls) restore() error {
	err := restore(s.done)
	s.done = nil
	return err
}

// restore puts back old values, newest first, unless somebody else has changed them
// since.
func restore(done []setting) (err error) {
	for _, c := range slices.Backward(done) {
		now, e := c.path.read()
		switch {
		case errors.Is(e, fs.ErrNotExist): // its device has gone
		case e != nil:
			err = errors.Join(err, e)
		case now != c.new || c.keep():
		default:
			err = errors.Join(err, c.path.write(c.old))
		}
	}
	return err
}

// keep reports whether somebody wants what we have set: forwarding in general was
// switched on since, which has set all devices to what we had set ours to.
func (c setting) keep() bool {
	if !strings.HasPrefix(string(c.path), "net/ipv4/conf/") || path.Base(string(c.path)) != "forwarding" {
		return false
	}
	all, err := sysctlPath("net/ipv4/conf/all/forwarding").read()
	return err == nil && all == "1"
}
