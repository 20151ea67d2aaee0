package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	listenLimit     = 10 * time.Second
	listenPollFirst = 2 * time.Millisecond
	listenPollMost  = 100 * time.Millisecond

	serverGrace = 3 * time.Second
)

// A Server is a program that listens on a host.
type Server struct {
	*process
	host *Host
}

// Serve starts `sh -c command` on the host and returns when it listens on a TCP port
// that nobody there has listened on before. It is stopped by Stop or by the lab's end;
// ctx is for the start alone.
func (h *Host) Serve(ctx context.Context, command string) (*Server, error) {
	before, err := h.listening()
	if err != nil {
		return nil, err
	}
	cmd := h.Command(context.Background(), "sh", "-c", command)
	p, err := h.start(fmt.Sprintf("server %q on host %s", command, h.Name()), cmd, newOutput(h.Name(), h.log))
	if err != nil {
		return nil, err
	}
	s := &Server{process: p, host: h}
	h.mu.Lock()
	h.servers = append(h.servers, s)
	h.mu.Unlock()

	listens := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	polled := make(chan error, 1)
	go func() {
		err := h.awaitListener(ctx, before)
		if err == nil {
			close(listens)
		}
		polled <- err
	}()
	err = p.await(ctx, listens, listenLimit, "listened on a TCP port")
	cancel()
	if pollErr := <-polled; err != nil && pollErr != nil && !errors.Is(pollErr, context.Canceled) {
		err = pollErr
	}
	if err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

// Stop ends the server and its children: SIGTERM, and SIGKILL for what takes longer
// than a few seconds. It may be called twice.
func (s *Server) Stop() {
	// How a server takes its end is no concern of the lab.
	_ = s.stop(serverGrace)
}

// Done is closed when the server has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Log returns the last lines that the server has written.
func (s *Server) Log() string { return s.out.last() }

// stopServers stops all at once.
func (h *Host) stopServers() {
	h.mu.Lock()
	servers := h.servers
	h.servers = nil
	h.mu.Unlock()
	for _, s := range servers {
		_ = unix.Kill(-s.cmd.Process.Pid, unix.SIGTERM)
	}
	for _, s := range servers {
		s.Stop()
	}
}

// awaitListener returns when a socket listens that is not in before. The kernel tells
// of sockets that close, not of those that begin to listen, so it asks, at first often.
func (h *Host) awaitListener(ctx context.Context, before map[listener]struct{}) error {
	pause := listenPollFirst
	for {
		now, err := h.listening()
		if err != nil {
			return err
		}
		for l := range maps.Keys(now) {
			if _, old := before[l]; !old {
				return nil
			}
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, listenPollMost)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A listener is a listening TCP socket.
type listener struct {
	family uint8
	inode  uint32
	port   uint16
}

// listening asks the host's kernel which sockets listen.
func (h *Host) listening() (map[listener]struct{}, error) {
	found := make(map[listener]struct{})
	err := h.Do(func() error {
		handle, err := netlink.NewHandle(unix.NETLINK_INET_DIAG)
		if err != nil {
			return err
		}
		defer handle.Close()
		families := []uint8{unix.AF_INET}
		if haveIPv6() {
			families = append(families, unix.AF_INET6)
		}
		for _, family := range families {
			sockets, err := handle.SocketDiagTCP(family)
			for errors.Is(err, netlink.ErrDumpInterrupted) { // sockets came and went meanwhile
				sockets, err = handle.SocketDiagTCP(family)
			}
			if err != nil {
				return err
			}
			for _, s := range sockets {
				if s.State == netlink.TCP_LISTEN {
					found[listener{s.Family, s.INode, s.ID.SourcePort}] = struct{}{}
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, &Error{What: "ask which sockets listen on host " + h.Name(), Err: err}
	}
	return found, nil
}
