package socket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"gvisor.dev/gvisor/pkg/tcpip"

	"github.com/tcpcrypt/tcpcrypt/stack"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
)

// Dial connects to remote and returns when data may flow: in clear, or encrypted with
// keys exchanged. Both ends dialling each other at once from the ports that the other
// dials makes one connection, if o.Local is set; it is encrypted if exactly one of them
// has o.Crypto.PassiveRole.
//
// The error is a *net.OpError. Under a require policy it is a *NotEncryptedError if the
// peer does not encrypt, or the cause if the key exchange fails; otherwise
// syscall.ECONNREFUSED and the like, or ctx's error.
func (n *Net) Dial(ctx context.Context, remote netip.AddrPort, o ConnOptions) (*Conn, error) {
	remote = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
	o.Local = netip.AddrPortFrom(o.Local.Addr().Unmap(), o.Local.Port())
	c, err := n.dial(ctx, remote, o)
	if err != nil {
		var source net.Addr
		if o.Local.IsValid() {
			source = net.TCPAddrFromAddrPort(o.Local)
		}
		return nil, opError("dial", "connect", source, net.TCPAddrFromAddrPort(remote), err)
	}
	return c, nil
}

func (n *Net) dial(ctx context.Context, remote netip.AddrPort, o ConnOptions) (*Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !remote.IsValid() || remote.Addr().IsUnspecified() {
		return nil, &net.AddrError{Err: "not an address to dial", Addr: remote.String()}
	}
	eno, err := n.negotiator(o, true, remote)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errOptions, err)
	}
	c := newConn(n, o)
	ep, terr := n.stack.NewEndpoint(tcp.ProtocolNumber, protocolOf(remote.Addr()), c.queue)
	if terr != nil {
		return nil, toError(terr)
	}
	se, _ := tcp.AsSecure(ep) // there is an extension, so it is one
	if eno == nil {
		se.SetNegotiator(nil) // not a nil *stack.ENO
	} else {
		se.SetNegotiator(eno)
	}
	c.use(ep)
	if !n.add(c) {
		c.abandon()
		return nil, net.ErrClosed
	}
	if o.Local.Port() != 0 || o.Local.Addr().IsValid() {
		if terr := ep.Bind(full(o.Local)); terr != nil {
			c.abandon()
			return nil, toError(terr)
		}
	}
	terr = ep.Connect(full(remote))
	if _, started := terr.(*tcpip.ErrConnectStarted); terr != nil && !started {
		c.abandon()
		return nil, toError(terr)
	}
	select {
	case <-se.Ready():
	case <-ctx.Done():
		c.abandon()
		return nil, ctx.Err()
	case <-n.done:
		c.abandon()
		return nil, net.ErrClosed
	}
	if terr := ep.LastError(); terr != nil {
		err := toError(terr)
		if eno != nil && o.Policy == stack.Require {
			if out, decided := eno.Outcome(); decided && !out.Encrypted {
				err = &NotEncryptedError{Reason: out.Reason}
			}
		}
		c.abandon()
		return nil, err
	}
	c.connected()
	return c, nil
}

// DialContext connects to host:port with the Net's own ConnOptions, for http.Transport
// and the like. network is tcp, tcp4 or tcp6. Of several addresses of a name the first
// that answers is taken.
func (n *Net) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	addrs, port, err := n.resolve(ctx, network, address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	for _, a := range addrs {
		var c *Conn
		if c, err = n.Dial(ctx, netip.AddrPortFrom(a, port), n.opt.Conn); err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

func (n *Net) resolve(ctx context.Context, network, address string) ([]netip.Addr, uint16, error) {
	family, ok := map[string]string{"tcp": "ip", "tcp4": "ip4", "tcp6": "ip6"}[network]
	if !ok {
		return nil, 0, net.UnknownNetworkError(network)
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, 0, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return nil, 0, &net.AddrError{Err: "invalid port", Addr: address}
	}
	addrs := make([]netip.Addr, 1)
	if addrs[0], err = netip.ParseAddr(host); err != nil {
		if n.opt.LookupNetIP == nil {
			return nil, 0, &net.AddrError{Err: "not an IP address, and no LookupNetIP", Addr: address}
		}
		if addrs, err = n.opt.LookupNetIP(ctx, family, host); err != nil {
			return nil, 0, err
		}
	}
	var usable []netip.Addr
	for _, a := range addrs {
		a = a.Unmap()
		if family == "ip" || a.Is4() == (family == "ip4") {
			usable = append(usable, a)
		}
	}
	if len(usable) == 0 {
		return nil, 0, errNoAddress
	}
	return usable, uint16(port), nil
}

var errNoAddress = errors.New("socket: no suitable address")
