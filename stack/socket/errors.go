package socket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// A NotEncryptedError is why Dial fails when the policy is require and the connection
// would be in clear. TCP was established, and reset before any data.
type NotEncryptedError struct{ Reason tcpcrypt.Reason }

// Error implements error.
func (e *NotEncryptedError) Error() string {
	return "policy requires encryption: " + string(e.Reason)
}

// errOptions means that ConnOptions make no sense.
var errOptions = errors.New("socket: bad options")

// opError makes err, of netstack, an error as package net has them. syscallName is the
// system call that a kernel's socket would have failed in.
func opError(op, syscallName string, source, addr net.Addr, err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = os.NewSyscallError(syscallName, errno)
	}
	e := &net.OpError{Op: op, Net: "tcp", Err: err}
	if source != nil {
		e.Source = source
	}
	if addr != nil {
		e.Addr = addr
	}
	return e
}

// toError returns what a program is told of netstack's err: the cause, if protection
// failed, and a syscall.Errno otherwise. nil for nil.
func toError(err tcpip.Error) error {
	if err == nil {
		return nil
	}
	if failed, ok := err.(*tcp.Error); ok {
		return protocolError(failed.Cause())
	}
	if errno, ok := errnoOf(err); ok {
		return errno
	}
	return errors.New(err.String())
}

// protocolError gives a cause of stack/tcp's own the name that package tcpcrypt has for
// it too: a stream that ends inside a record is as truncated as one that ends between
// two.
func protocolError(cause error) error {
	for _, same := range []struct{ tcp, name error }{
		{tcp.ErrTruncated, tcpcrypt.ErrTruncated},
		{tcp.ErrAfterEnd, tcpcrypt.ErrAfterFIN},
	} {
		if errors.Is(cause, same.tcp) && !errors.Is(cause, same.name) {
			return fmt.Errorf("%w: %w", same.name, cause)
		}
	}
	return cause
}

func errnoOf(err tcpip.Error) (syscall.Errno, bool) {
	switch err.(type) {
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED, true
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET, true
	case *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return syscall.ECONNABORTED, true
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT, true
	case *tcpip.ErrClosedForSend:
		return syscall.EPIPE, true
	case *tcpip.ErrHostUnreachable:
		return syscall.EHOSTUNREACH, true
	case *tcpip.ErrNetworkUnreachable, *tcpip.ErrNoNet:
		return syscall.ENETUNREACH, true
	case *tcpip.ErrHostDown:
		return syscall.EHOSTDOWN, true
	case *tcpip.ErrPortInUse, *tcpip.ErrAlreadyBound:
		return syscall.EADDRINUSE, true
	case *tcpip.ErrBadLocalAddress, *tcpip.ErrNoPortAvailable:
		return syscall.EADDRNOTAVAIL, true
	case *tcpip.ErrNotConnected:
		return syscall.ENOTCONN, true
	case *tcpip.ErrNoBufferSpace:
		return syscall.ENOBUFS, true
	case *tcpip.ErrInvalidEndpointState, *tcpip.ErrBadAddress:
		return syscall.EINVAL, true
	default:
		return 0, false
	}
}
