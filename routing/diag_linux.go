package routing

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Messages of sock_diag(7), from linux/sock_diag.h and linux/inet_diag.h.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21

	diagRequestLen = 56 // struct inet_diag_req_v2
	diagAnswerLen  = 72 // struct inet_diag_msg
	diagIDLen      = 48 // struct inet_diag_sockid
)

// States of TCP, from net/tcp_states.h.
const (
	tcpEstablished = 1
	tcpSynSent     = 2
	tcpSynRecv     = 3
	tcpFinWait1    = 4
	tcpFinWait2    = 5
	tcpCloseWait   = 8
	tcpLastAck     = 9
	tcpListen      = 10
	tcpClosing     = 11

	liveStates = 1<<tcpEstablished | 1<<tcpSynSent | 1<<tcpSynRecv | 1<<tcpFinWait1 | 1<<tcpFinWait2 |
		1<<tcpCloseWait | 1<<tcpLastAck | 1<<tcpClosing
)

// A socket is a TCP socket of this network namespace. An IPv4 connection of an IPv6
// socket has IPv4 addresses here.
type socket struct {
	state         uint8
	local, remote netip.AddrPort
	af            uint8           // address family of the socket
	id            [diagIDLen]byte // the kernel's name of it, cookie included
}

// A diag is a connection to sock_diag.
type diag struct{ conn *netlink.Conn }

func openDiag() (*diag, error) {
	conn, err := netlink.Dial(unix.NETLINK_INET_DIAG, nil)
	if err != nil {
		return nil, &Error{What: "list TCP sockets", Err: err, Fix: fix(err)}
	}
	return &diag{conn}, nil
}

func (d *diag) close() { _ = d.conn.Close() }

func diagRequest(af uint8, states uint32, id [diagIDLen]byte) []byte {
	b := make([]byte, 0, diagRequestLen)
	b = append(b, af, unix.IPPROTO_TCP, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, states)
	return append(b, id[:]...)
}

// sockid is struct inet_diag_sockid without a cookie.
func sockid(local, remote netip.AddrPort, device uint32) (id [diagIDLen]byte) {
	binary.BigEndian.PutUint16(id[0:], local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	copy(id[4:20], local.Addr().AsSlice())
	copy(id[20:36], remote.Addr().AsSlice())
	binary.NativeEndian.PutUint32(id[36:], device)
	for i := 40; i < diagIDLen; i++ {
		id[i] = 0xff // INET_DIAG_NOCOOKIE
	}
	return id
}

func parseSocket(b []byte) (socket, error) {
	if len(b) < diagAnswerLen {
		return socket{}, fmt.Errorf("sock_diag: message of %d bytes, want at least %d", len(b), diagAnswerLen)
	}
	s := socket{af: b[0], state: b[1], id: [diagIDLen]byte(b[4 : 4+diagIDLen])}
	addr := func(at int) netip.Addr {
		if s.af == unix.AF_INET {
			return netip.AddrFrom4([4]byte(s.id[at : at+4]))
		}
		return netip.AddrFrom16([16]byte(s.id[at : at+16])).Unmap()
	}
	s.local = netip.AddrPortFrom(addr(4), binary.BigEndian.Uint16(s.id[0:]))
	s.remote = netip.AddrPortFrom(addr(20), binary.BigEndian.Uint16(s.id[2:]))
	return s, nil
}

// sockets calls each for all sockets in the given states (a set of bits).
func (d *diag) sockets(states uint32, each func(socket)) error {
	for _, af := range []uint8{unix.AF_INET, unix.AF_INET6} {
		answers, err := d.conn.Execute(netlink.Message{
			Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump},
			Data:   diagRequest(af, states, [diagIDLen]byte{}),
		})
		if err != nil {
			return &Error{What: "list TCP sockets", Err: err, Fix: fix(err)}
		}
		for _, m := range answers {
			s, err := parseSocket(m.Data)
			if err != nil {
				return err
			}
			each(s)
		}
	}
	return nil
}

// lookup is what the kernel does with an incoming segment: the socket that would get
// one from remote to local by the device.
func (d *diag) lookup(local, remote netip.AddrPort, device int) (s socket, found bool, err error) {
	af := uint8(afOf(version(local.Addr())))
	answers, err := d.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request},
		Data:   diagRequest(af, 0, sockid(local, remote, uint32(device))),
	})
	if errors.Is(err, unix.ENOENT) {
		return socket{}, false, nil
	}
	if err != nil {
		return socket{}, false, &Error{What: "look for a TCP socket", Err: err, Fix: fix(err)}
	}
	for _, m := range answers {
		s, err = parseSocket(m.Data)
		return s, err == nil, err
	}
	return socket{}, false, nil
}

// destroy aborts the connection of s; its program sees ECONNABORTED. A socket that
// has gone meanwhile is as good.
func (d *diag) destroy(s socket) error {
	_, err := d.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDestroy, Flags: netlink.Request | netlink.Acknowledge},
		Data:   diagRequest(s.af, 0, s.id),
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// Listening reports whether a connection from client to H at port would find a
// listening socket. It is the kernel's own lookup.
func (h *Host) Listening(port uint16, client netip.AddrPort) (bool, error) {
	addr := client.Addr().Unmap()
	local := netip.AddrPortFrom(h.config.family(version(addr)).host, port)
	// With the client's port the answer might be an old connection.
	s, found, err := h.diag.lookup(local, netip.AddrPortFrom(addr, 0), h.device)
	return found && s.state == tcpListen, err
}

// destroyCaptured aborts the sockets whose connections went into the device: those
// that conntrack knows by our mark, and those at an address of the link. It returns
// how many.
func destroyCaptured(ctx context.Context, link ...netip.Addr) (n int, err error) {
	marked, err := markedFlows()
	if err != nil {
		return 0, err
	}
	d, err := openDiag()
	if err != nil {
		return 0, err
	}
	defer d.close()
	var victims []socket
	err = d.sockets(liveStates, func(s socket) {
		if slices.Contains(link, s.local.Addr()) || marked[tuple{s.local, s.remote}] {
			victims = append(victims, s)
		}
	})
	if err != nil {
		return 0, err
	}
	var errs error
	for _, s := range victims {
		if err := ctx.Err(); err != nil {
			return n, errors.Join(errs, err)
		}
		if err := d.destroy(s); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) {
				return n, &Error{What: "abort TCP sockets", Err: err, Fix: "use a kernel with CONFIG_INET_DIAG_DESTROY"}
			}
			errs = errors.Join(errs, fmt.Errorf("abort %v to %v: %w", s.local, s.remote, err))
			continue
		}
		n++
	}
	return n, errs
}

// ResetCaptured aborts every local socket whose connection goes through the device,
// so that none of them is left to go on in clear once the rules are gone.
func (h *Host) ResetCaptured(ctx context.Context) error {
	_, err := destroyCaptured(ctx, h.config.Host4, h.config.Host6)
	return err
}
