package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	requestLimit = 10 * time.Second // for a request to come and an answer to go
	headerLimit  = 16 << 10         // bytes
	clientLimit  = 64               // connections to the socket at once
	closeLimit   = time.Second
	maxPath      = len(unix.RawSockaddrUnix{}.Path) - 1 // bytes
)

// A server answers on the control socket. Only root and the daemon's own user may ask:
// the socket's mode says so, and each connection's credentials are looked at too.
type server struct {
	path string
	http http.Server
	wg   sync.WaitGroup
}

// listen serves on a new socket at path. A socket that nobody serves any more is
// replaced; one that is in use, or anything else at path, is an error.
func listen(path string, a answerer, log *slog.Logger) (*server, error) {
	if len(path) > maxPath {
		return nil, &Error{What: "listen on the control socket " + path,
			Err: fmt.Errorf("%d bytes are too long for a socket", len(path)), Fix: fmt.Sprintf("a path of at most %d bytes, with --socket PATH", maxPath)}
	}
	if err := makeWay(path); err != nil {
		return nil, err
	}
	l, err := listenPrivate(path)
	if err != nil {
		return nil, &Error{What: "listen on the control socket " + path, Err: cause(err),
			Fix: "another path, with --socket PATH"}
	}
	s := &server{path: path}
	s.http = http.Server{
		Handler:           routes(a, log),
		ReadHeaderTimeout: requestLimit, ReadTimeout: requestLimit, WriteTimeout: requestLimit, IdleTimeout: requestLimit,
		MaxHeaderBytes: headerLimit,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	s.wg.Go(func() {
		err := s.http.Serve(&peerListener{Listener: l, slots: make(chan struct{}, clientLimit)})
		if !errors.Is(err, http.ErrServerClosed) {
			log.Error("control socket failed", slog.Any("err", err))
		}
	})
	return s, nil
}

// listenPrivate makes the socket with mode 0600 from the start.
func listenPrivate(path string) (net.Listener, error) {
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	return net.Listen("unix", path)
}

// makeWay removes a socket at path that nobody serves.
func makeWay(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	what := "use the control socket " + path
	switch {
	case err != nil:
		return &Error{What: what, Err: cause(err), Fix: "another path, with --socket PATH"}
	case info.Mode().Type() != os.ModeSocket:
		return &Error{What: what, Err: errors.New("something else is there"), Fix: "another path, with --socket PATH"}
	}
	c, err := net.DialTimeout("unix", path, closeLimit)
	if err == nil {
		_ = c.Close()
		return &Error{What: what, Err: errors.New("another daemon answers there"),
			Fix: "stop that one, or give this one another path with --socket PATH"}
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return &Error{What: what, Err: cause(err), Fix: "another path, with --socket PATH"}
	}
	if err := os.Remove(path); err != nil {
		return &Error{What: "replace the stale control socket " + path, Err: cause(err)}
	}
	return nil
}

// Close stops serving and removes the socket. It returns when its goroutines have
// gone, and may be called twice.
func (s *server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	s.wg.Wait()
	return err
}

// A peerListener accepts from root and our own user, and not too many at once.
type peerListener struct {
	net.Listener
	slots chan struct{}
}

// Accept implements net.Listener.
func (l *peerListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if uid, err := peerUID(c); err != nil || uid != 0 && uid != uint32(os.Geteuid()) {
			_ = c.Close()
			continue
		}
		select {
		case l.slots <- struct{}{}:
			return &slotConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			_ = c.Close()
		}
	}
}

// A slotConn gives its slot back when it is closed.
type slotConn struct {
	net.Conn
	free func()
}

// Close implements net.Conn.
func (c *slotConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}

func peerUID(c net.Conn) (uint32, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("not a unix socket: %T", c)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return cred.Uid, nil
}

// cause drops what an error says of the operation, which its Error says better.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		return call.Err
	}
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
