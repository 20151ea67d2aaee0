package socket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/tcpcrypt/tcpcrypt/stack"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// nic is the one NIC.
const nic tcpip.NICID = 1

// Options configures a Net. Link and at least one address are needed.
type Options struct {
	Link  nstack.LinkEndpoint // owned by the Net once New has succeeded; Close closes it
	Addrs []netip.Addr        // our own; the first of a family is preferred as source
	MTU   uint32              // in bytes with the IP header; 0 is the link's

	// Cache holds what may be resumed, and may be shared by several Nets. It stays the
	// caller's. nil: every connection exchanges keys afresh.
	Cache *tcpcrypt.Cache

	// Conn is what DialContext dials with. LookupNetIP resolves its host names,
	// net.DefaultResolver.LookupNetIP say; nil: only addresses can be dialled.
	Conn        ConnOptions
	LookupNetIP func(ctx context.Context, network, host string) ([]netip.Addr, error)

	Log *slog.Logger // nil discards
}

// ConnOptions says what one connection, or every connection of a listener, offers and
// accepts. The zero value encrypts if the peer can.
type ConnOptions struct {
	Policy stack.Policy     // Opportunistic, Require or Bypass
	Crypto tcpcrypt.Options // TEPs, AEADs, application-aware bit, role. Offer and Lookup are the Cache's

	NoResume bool // neither offer nor accept resumption
	NoKeep   bool // keep nothing of the connection for a later one

	KeepAlive tcp.KeepAlive // see Conn.SetKeepAlive; the zero value is off

	// Local is the address and port to dial from. The zero value lets the stack choose,
	// as does a port of 0. A listener ignores it.
	Local netip.AddrPort
}

// negotiator makes what negotiates for a connection; nil under bypass.
func (n *Net) negotiator(o ConnOptions, active bool, peer netip.AddrPort) (*stack.ENO, error) {
	if o.Policy == stack.Bypass {
		return nil, nil
	}
	return stack.NewNegotiator(stack.NegotiatorOptions{
		Options: o.Crypto, Active: active, Require: o.Policy == stack.Require,
		Peer: peer, Cache: n.opt.Cache, NoResume: o.NoResume, NoKeep: o.NoKeep,
	})
}

// A Net is a TCP/IP stack of one's own on a link. All methods may be called from several
// goroutines at once.
type Net struct {
	opt   Options
	log   *slog.Logger
	stack *nstack.Stack

	done     chan struct{} // closed by Close
	doneOnce sync.Once

	mu        sync.Mutex
	conns     map[*Conn]struct{}     // those that are open. Guarded by mu
	listeners map[*Listener]struct{} // guarded by mu
}

// New makes a stack on o.Link. Close ends it.
func New(o Options) (*Net, error) {
	if o.Link == nil {
		return nil, errors.New("socket: no link")
	}
	if len(o.Addrs) == 0 {
		return nil, errors.New("socket: no address")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	n := &Net{
		opt:       o,
		log:       o.Log,
		done:      make(chan struct{}),
		conns:     make(map[*Conn]struct{}),
		listeners: make(map[*Listener]struct{}),
	}
	n.stack = nstack.New(nstack.Options{
		NetworkProtocols: []nstack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []nstack.TransportProtocolFactory{tcp.NewProtocolWithOptions(tcp.Options{
			Extension: extension{n},
			MTU:       func(_, _ netip.Addr) uint32 { return o.MTU },
		})},
	})
	if err := n.assemble(); err != nil {
		n.stack.Destroy()
		return nil, err
	}
	return n, nil
}

func (n *Net) assemble() error {
	if err := stack.TuneTCP(n.stack, false); err != nil {
		return err
	}
	for _, a := range n.opt.Addrs {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() {
			return fmt.Errorf("socket: %s cannot be an address of ours", a)
		}
	}
	if err := n.stack.CreateNICWithOptions(nic, n.opt.Link, nstack.NICOptions{Disabled: true}); err != nil {
		return fmt.Errorf("socket: create the NIC: %w", toError(err))
	}
	var has4, has6 bool
	for _, a := range n.opt.Addrs {
		pa := tcpip.ProtocolAddress{Protocol: protocolOf(a), AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := n.stack.AddProtocolAddress(nic, pa, nstack.AddressProperties{}); err != nil {
			return fmt.Errorf("socket: add %s: %w", a, toError(err))
		}
		has4, has6 = has4 || a.Is4(), has6 || a.Is6()
	}
	var routes []tcpip.Route
	if has4 {
		routes = append(routes, tcpip.Route{Destination: header.IPv4EmptySubnet, NIC: nic})
	}
	if has6 {
		routes = append(routes, tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: nic})
	}
	n.stack.SetRouteTable(routes)
	if err := n.stack.EnableNIC(nic); err != nil {
		return fmt.Errorf("socket: enable the NIC: %w", toError(err))
	}
	return nil
}

// Close resets all connections, whose methods then fail with net.ErrClosed, ends all
// listeners, wipes the secrets and closes the link. It may be called twice.
func (n *Net) Close() error {
	n.doneOnce.Do(func() {
		n.mu.Lock()
		conns, listeners := n.conns, n.listeners
		n.conns, n.listeners = nil, nil
		close(n.done)
		n.mu.Unlock()
		for l := range listeners {
			l.ep.Close()
		}
		for c := range conns {
			c.ep.Abort()
		}
		n.stack.Destroy()
	})
	return nil
}

// add remembers c, to be reset by Close; false if that was called.
func (n *Net) add(c *Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conns == nil {
		return false
	}
	n.conns[c] = struct{}{}
	return true
}

func (n *Net) remove(c *Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, c)
}

// An extension finds what negotiates for a connection that is opened to a listener.
type extension struct{ n *Net }

// Active implements tcp.Extension: Dial sets the negotiator itself.
func (extension) Active(tcp.Conn) tcp.Negotiator { return nil }

// Passive implements tcp.Extension.
func (e extension) Passive(c tcp.Conn, _ []byte) tcp.Negotiator {
	l := e.n.listener(c.Local)
	if l == nil {
		return refusal{errors.New("socket: not listening any more")}
	}
	eno, err := e.n.negotiator(l.opt, false, c.Remote)
	switch {
	case err != nil: // Listen has tried these options
		return refusal{err}
	case eno == nil:
		return nil
	default:
		return eno
	}
}

// Cookie implements tcp.Extension: a connection that was made from a SYN cookie is in
// clear.
func (e extension) Cookie(c tcp.Conn) error {
	l := e.n.listener(c.Local)
	if l == nil || l.opt.Policy == stack.Require {
		return &NotEncryptedError{Reason: tcpcrypt.ReasonLimit}
	}
	return nil
}

// listener returns who listens on a; two never do.
func (n *Net) listener(a netip.AddrPort) *Listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	for l := range n.listeners {
		if l.local.Port() == a.Port() && covers(l.local.Addr(), a.Addr()) {
			return l
		}
	}
	return nil
}

// A refusal resets a connection before any data.
type refusal struct{ err error }

var _ tcp.Negotiator = refusal{}

func (refusal) SYNOption(int, int) []byte { return nil }
func (refusal) ReceiveSYN([]byte)         {}
func (refusal) NonSYNOption() []byte      { return nil }
func (refusal) Misled() []byte            { return nil }
func (refusal) Abandon()                  {}
func (r refusal) ReceiveACK([]byte, bool) (tcp.Session, error) {
	return nil, r.err
}

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// full is a for netstack. An unspecified address is left out.
func full(a netip.AddrPort) tcpip.FullAddress {
	f := tcpip.FullAddress{NIC: nic, Port: a.Port()}
	if a.Addr().IsValid() && !a.Addr().IsUnspecified() {
		f.Addr = tcpip.AddrFromSlice(a.Addr().AsSlice())
	}
	return f
}

// addrPort is a of netstack's, never mapped; zero if there is none.
func addrPort(a tcpip.FullAddress, err tcpip.Error) netip.AddrPort {
	if err != nil {
		return netip.AddrPort{}
	}
	addr, _ := netip.AddrFromSlice(a.Addr.AsSlice())
	return netip.AddrPortFrom(addr.Unmap(), a.Port)
}
