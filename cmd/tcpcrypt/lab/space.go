package lab

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// A space is an operating-system thread in namespaces of its own. What is done on it
// is done there: files opened, sockets made, processes started. The namespaces live
// as long as the thread and what has been started from it.
type space struct {
	calls chan func()
	quit  chan struct{} // closed by close
	gone  chan struct{} // closed when the thread has left
	netns *os.File      // names the network namespace to others
}

// newSpace leaves for new namespaces (unix.CLONE_NEWNET and others) and runs setup
// there first.
func newSpace(flags int, setup func() error) (*space, error) {
	s := &space{calls: make(chan func()), quit: make(chan struct{}), gone: make(chan struct{})}
	started := make(chan error, 1)
	go s.run(flags, setup, started)
	if err := <-started; err != nil {
		<-s.gone
		return nil, err
	}
	return s, nil
}

// run never unlocks the thread, so the runtime ends it with the goroutine.
func (s *space) run(flags int, setup func() error, started chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread's namespaces are what /proc shows as the process's, and it
		// cannot end. Sit on it until another thread is found.
		go s.run(flags, setup, started)
		<-s.gone
		runtime.UnlockOSThread()
		return
	}
	defer close(s.gone)
	err := unix.Unshare(flags)
	if err != nil {
		started <- namespacesRefused(err, thisKernel())
		return
	}
	if s.netns, err = os.Open("/proc/thread-self/ns/net"); err == nil {
		defer func() { _ = s.netns.Close() }()
		err = setup()
	}
	started <- err
	if err != nil {
		return
	}
	for {
		select {
		case call := <-s.calls:
			call()
		case <-s.quit:
			return
		}
	}
}

// do runs f on the thread and returns its error. Calls come one after another; f must
// not call do.
func (s *space) do(f func() error) error {
	done := make(chan error, 1)
	select {
	case s.calls <- func() { done <- f() }:
		return <-done
	case <-s.gone:
		return fmt.Errorf("the host has been taken down: %w", os.ErrClosed)
	}
}

// close ends the thread; a do that is running is waited for. It may be called once.
func (s *space) close() {
	close(s.quit)
	<-s.gone
}
