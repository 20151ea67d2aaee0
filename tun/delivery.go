package tun

import "sync"

// A delivery is the goroutine that feeds a stack, from Attach to Attach(nil) or
// Close. A nil *delivery is one that never ran.
type delivery struct {
	stopOnce sync.Once
	stopped  chan struct{}
	done     chan struct{}
}

// next starts run in a goroutine once d has ended; d is told to. run returns soon
// after the channel is closed.
func (d *delivery) next(run func(stop <-chan struct{})) *delivery {
	d.stop()
	n := &delivery{stopped: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(n.done)
		d.wait()
		run(n.stopped)
	}()
	return n
}

// stop asks the goroutine to end and does not wait.
func (d *delivery) stop() {
	if d != nil {
		d.stopOnce.Do(func() { close(d.stopped) })
	}
}

// wait returns when the goroutine has gone. It must not be called from it.
func (d *delivery) wait() {
	if d != nil {
		<-d.done
	}
}
