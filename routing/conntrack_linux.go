package routing

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Messages of conntrack, from linux/netfilter/nfnetlink_conntrack.h.
const (
	ctNew    = unix.NFNL_SUBSYS_CTNETLINK << 8   // IPCTNL_MSG_CT_NEW, the answer too
	ctGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	ctDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaMark       = 8
	ctaMarkMask   = 21

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3
)

// A tuple is one direction of a TCP connection.
type tuple struct{ src, dst netip.AddrPort }

// A ctFlow is an entry of conntrack: how its packets look in each direction where
// they come in. Without NAT one is the other turned round.
type ctFlow struct {
	orig, reply tuple
	mark        uint32
}

func dialConntrack() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, &Error{What: "ask conntrack", Err: err, Fix: fix(err)}
	}
	return conn, nil
}

func nfgenmsg(v int) []byte { return []byte{byte(nfFamily(v)), unix.NFNETLINK_V0, 0, 0} }

// encode appends the tuple as a nested attribute.
func (t tuple) encode(ae *netlink.AttributeEncoder, kind uint16) {
	src, dst := uint16(1), uint16(2) // CTA_IP_V4_SRC, CTA_IP_V4_DST
	if !t.src.Addr().Is4() {
		src, dst = 3, 4
	}
	ae.Nested(kind, func(ae *netlink.AttributeEncoder) error {
		ae.Nested(ctaTupleIP, func(ae *netlink.AttributeEncoder) error {
			ae.Bytes(src, t.src.Addr().AsSlice())
			ae.Bytes(dst, t.dst.Addr().AsSlice())
			return nil
		})
		ae.Nested(ctaTupleProto, func(ae *netlink.AttributeEncoder) error {
			ae.Uint8(ctaProtoNum, unix.IPPROTO_TCP)
			ae.Bytes(ctaProtoSrcPort, binary.BigEndian.AppendUint16(nil, t.src.Port()))
			ae.Bytes(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, t.dst.Port()))
			return nil
		})
		return nil
	})
}

// parseFlow reads one entry. ok is false for another protocol than TCP.
func parseFlow(b []byte) (f ctFlow, ok bool, err error) {
	if len(b) < 4 {
		return f, false, errors.New("conntrack: short message")
	}
	ad, err := netlink.NewAttributeDecoder(b[4:])
	if err != nil {
		return f, false, err
	}
	ad.ByteOrder = binary.BigEndian
	ok = true
	for ad.Next() {
		switch ad.Type() {
		case ctaTupleOrig:
			ad.Nested(func(ad *netlink.AttributeDecoder) error { return f.orig.decode(ad, &ok) })
		case ctaTupleReply:
			ad.Nested(func(ad *netlink.AttributeDecoder) error { return f.reply.decode(ad, &ok) })
		case ctaMark:
			f.mark = ad.Uint32()
		}
	}
	return f, ok, ad.Err()
}

func (t *tuple) decode(ad *netlink.AttributeDecoder, isTCP *bool) error {
	var src, dst netip.Addr
	var sport, dport uint16
	for ad.Next() {
		switch ad.Type() {
		case ctaTupleIP:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					switch a, _ := netip.AddrFromSlice(ad.Bytes()); ad.Type() {
					case 1, 3:
						src = a
					case 2, 4:
						dst = a
					}
				}
				return ad.Err()
			})
		case ctaTupleProto:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					switch ad.Type() {
					case ctaProtoNum:
						*isTCP = *isTCP && ad.Uint8() == unix.IPPROTO_TCP
					case ctaProtoSrcPort:
						sport = ad.Uint16()
					case ctaProtoDstPort:
						dport = ad.Uint16()
					}
				}
				return ad.Err()
			})
		}
	}
	t.src, t.dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return ad.Err()
}

// flows calls each for all TCP connections that conntrack knows, or for those whose
// mark has the given bits.
func flows(bits uint32, each func(ctFlow)) error {
	conn, err := dialConntrack()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // read only
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	if bits != 0 {
		ae.Uint32(ctaMark, bits)
		ae.Uint32(ctaMarkMask, bits)
	}
	filter, err := ae.Encode()
	if err != nil {
		return err
	}
	for _, v := range []int{4, 6} {
		answers, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: ctGet, Flags: netlink.Request | netlink.Dump},
			Data:   append(nfgenmsg(v), filter...),
		})
		if err != nil {
			return &Error{What: "list connections of conntrack", Err: err, Fix: fix(err)}
		}
		for _, m := range answers {
			f, ok, err := parseFlow(m.Data)
			if err != nil {
				return fmt.Errorf("read an entry of conntrack: %w", err)
			}
			if ok && f.mark&bits == bits { // old kernels do not filter
				each(f)
			}
		}
	}
	return nil
}

// markedFlows are the connections whose first segment went into the device, as their
// sockets see them.
func markedFlows() (map[tuple]bool, error) {
	all := map[tuple]bool{}
	err := flows(mark, func(f ctFlow) { all[f.orig] = true })
	return all, err
}

// OriginalDst tells what remote dialled to reach stack, an address and port of S. The
// error is fs.ErrNotExist if the kernel does not know the connection.
func (h *Host) OriginalDst(remote, stack netip.AddrPort) (netip.AddrPort, error) {
	remote = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	tuple{src: stack, dst: remote}.encode(ae, ctaTupleReply)
	b, err := ae.Encode()
	if err != nil {
		return netip.AddrPort{}, err
	}
	// The one answer is marked as one of several. The acknowledgement ends them.
	answers, err := h.ct.Execute(netlink.Message{
		Header: netlink.Header{Type: ctGet, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(nfgenmsg(version(stack.Addr())), b...),
	})
	what := fmt.Sprintf("find what %v dialled", remote)
	if errors.Is(err, unix.ENOENT) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return netip.AddrPort{}, &Error{What: what, Err: err, Fix: fix(err)}
	}
	for _, m := range answers {
		if m.Header.Type != ctNew {
			continue
		}
		if f, ok, err := parseFlow(m.Data); err == nil && ok {
			return f.orig.dst, nil
		}
	}
	return netip.AddrPort{}, &Error{What: what, Err: fs.ErrNotExist}
}
