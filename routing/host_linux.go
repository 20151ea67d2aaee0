package routing

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
)

var errNotYet = errors.New("not yet")

// IPv6 reports whether this network namespace has IPv6. Where it has not, leave
// Host6 and Stack6 of the Config zero.
func IPv6() bool { return false }

// Check reports what would make Apply fail, as far as it can be known without
// changing anything: a live instance (ErrRunning), a taken device name, address,
// priority or table (ErrTaken), missing permission (os.ErrPermission) or kernel
// features. Call it before the device is opened. The error is an *Error.
func Check(ctx context.Context, c Config) error { return errNotYet }

// Clean removes what an instance that was killed left in this network namespace,
// after resetting the connections it had captured. With nothing to remove it does
// nothing; with a live instance it returns ErrRunning.
func Clean(ctx context.Context, log *slog.Logger) error { return errNotYet }

// A Host is a network namespace with a Config applied.
type Host struct{}

// Apply makes the kernel capture what c says into the device named c.Interface,
// which must exist. Leftovers of a killed instance are taken over. On failure
// everything is undone and the error, an *Error, names the step.
func Apply(ctx context.Context, c Config, log *slog.Logger) (*Host, error) {
	return nil, errNotYet
}

// Close undoes everything, newest first, and returns when the goroutines of h have
// ended. It goes on after an error and returns them joined. It may be called twice.
func (h *Host) Close() error { return errNotYet }

// Existing lists the connections that are captured now but were not when they
// began, those of local sockets and those routed through this host. Ask between
// Apply and the first read from the device; see the package comment.
func (h *Host) Existing(ctx context.Context) ([]Flow, error) { return nil, errNotYet }

// ResetCaptured aborts every local socket whose connection goes through the device,
// so that none of them is left to go on in clear once the rules are gone.
func (h *Host) ResetCaptured(ctx context.Context) error { return errNotYet }

// WireMTU is the MTU in bytes of the way from S to dst: of the route if it has one,
// else of the link; if there is no route, the smallest of all uplinks.
func (h *Host) WireMTU(dst netip.Addr) uint32 { return 1500 }

// Listening reports whether a connection from client to H at port would find a
// listening socket. It is the kernel's own lookup.
func (h *Host) Listening(port uint16, client netip.AddrPort) (bool, error) { return false, errNotYet }

// OriginalDst tells what remote dialled to reach stack, an address and port of S. The
// error is fs.ErrNotExist if the kernel does not know the connection.
func (h *Host) OriginalDst(remote, stack netip.AddrPort) (netip.AddrPort, error) {
	return netip.AddrPort{}, errNotYet
}
