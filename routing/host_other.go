//go:build !linux

package routing

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
)

// A Host exists on Linux only.
type Host struct{}

// IPv6 is false where there is no Host.
func IPv6() bool { return false }

// Check returns errors.ErrUnsupported.
func Check(context.Context, Config) error { return unsupported() }

// Clean returns errors.ErrUnsupported.
func Clean(context.Context, *slog.Logger) error { return unsupported() }

// Apply returns errors.ErrUnsupported.
func Apply(context.Context, Config, *slog.Logger) (*Host, error) { return nil, unsupported() }

// Close does nothing.
func (*Host) Close() error { return nil }

// Existing returns errors.ErrUnsupported.
func (*Host) Existing(context.Context) ([]Flow, error) { return nil, unsupported() }

// ResetCaptured returns errors.ErrUnsupported.
func (*Host) ResetCaptured(context.Context) error { return unsupported() }

// WireMTU returns 0.
func (*Host) WireMTU(netip.Addr) uint32 { return 0 }

// Listening returns errors.ErrUnsupported.
func (*Host) Listening(uint16, netip.AddrPort) (bool, error) { return false, unsupported() }

// OriginalDst returns errors.ErrUnsupported.
func (*Host) OriginalDst(remote, stack netip.AddrPort) (netip.AddrPort, error) {
	return netip.AddrPort{}, unsupported()
}

func unsupported() error {
	return &Error{What: "capture connections", Err: errors.ErrUnsupported, Fix: "run it on Linux"}
}
