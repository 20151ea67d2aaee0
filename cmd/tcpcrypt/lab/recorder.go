package lab

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

// Control returns a client of the host's daemon; nil for a plain host.
func (h *Host) Control() *control.Client {
	if h.daemon == nil {
		return nil
	}
	// The socket is in the host's /run, which only the host's thread has there.
	return &control.Client{Socket: fmt.Sprintf("/proc/self/fd/%d/%s", h.run.Fd(), filepath.Base(socketPath))}
}

const (
	// recordEvery is well below the minute for which a daemon remembers a closed connection.
	recordEvery = 15 * time.Second
	recordMost  = 100_000 // connections kept in all; a report of more is of no use to anybody
	askLimit    = 10 * time.Second
)

// An End is one daemon's view of a connection.
type End struct {
	Host string `json:"host"`
	control.Conn
}

// A recorder collects the connections of all daemons, those too that a daemon has
// forgotten by the time the lab ends.
type recorder struct {
	lab    *Lab
	cancel context.CancelFunc
	wg     sync.WaitGroup
	err    error // of the goroutine; read after wg

	ends map[string]map[uint64]control.Conn // by host and id; the goroutine's until it has ended
	n    int
}

func newRecorder(l *Lab) *recorder {
	ctx, cancel := context.WithCancel(context.Background())
	r := &recorder{lab: l, cancel: cancel, ends: make(map[string]map[uint64]control.Conn)}
	r.wg.Go(func() {
		tick := time.NewTicker(recordEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r.err = r.ask(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	return r
}

// close stops the recorder.
func (r *recorder) close() {
	r.cancel()
	r.wg.Wait()
}

// finish stops the recorder, asks a last time and returns everything joined.
func (r *recorder) finish() ([]Connection, error) {
	r.close()
	err := r.ask(context.Background())
	var ends []End
	for _, h := range r.lab.hosts {
		for _, c := range r.ends[h.Name()] {
			ends = append(ends, End{Host: h.Name(), Conn: c})
		}
	}
	return join(r.lab.hosts, ends), err
}

// ask takes the present state of all daemons. One that has ended is left out: its end
// is told elsewhere.
func (r *recorder) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var errs []error
	for _, h := range r.lab.hosts {
		if h.daemon == nil {
			continue
		}
		conns, err := h.Control().Conns(ctx, true)
		if err != nil {
			select {
			case <-h.daemon.done:
			default:
				errs = append(errs, fmt.Errorf("connections of host %s: %w", h.Name(), err))
			}
			continue
		}
		if r.ends[h.Name()] == nil {
			r.ends[h.Name()] = make(map[uint64]control.Conn)
		}
		for _, c := range conns {
			if _, known := r.ends[h.Name()][c.ID]; !known && r.n == recordMost {
				continue
			} else if !known {
				r.n++
			}
			r.ends[h.Name()][c.ID] = c
		}
	}
	return errors.Join(errs...)
}
