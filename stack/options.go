package stack

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// A Policy says what is done with a connection that reached us.
type Policy uint8

const (
	Opportunistic Policy = iota // encrypt if the peer can
	Require                     // encrypt or reset
	Bypass                      // relay in clear, offer nothing
)

// String returns the policy's name in the configuration.
func (p Policy) String() string {
	switch p {
	case Opportunistic:
		return "opportunistic"
	case Require:
		return "require"
	case Bypass:
		return "bypass"
	default:
		return fmt.Sprintf("policy %d", uint8(p))
	}
}

// A Rule is the policy of one connection and what its negotiation offers.
type Rule struct {
	Policy  Policy
	Options tcpcrypt.Options
	Label   string // for logs, e.g. "outbound[1]"

	// NoResumption neither resumes a session nor keeps one for later.
	NoResumption bool
}

// A Flow is a TCP connection that is older than the stack: Src is the end whose
// packets we see, so the local one.
type Flow struct {
	Src, Dst netip.AddrPort
	Policy   Policy
}

// Options configures a Stack. The functions are called from several goroutines at
// once, never with a lock of ours held; each nil function has the stated default.
type Options struct {
	Link nstack.LinkEndpoint // owned by the Stack from New on, which closes it

	// InjectPacket writes a raw IP packet to the link as if netstack had sent it: ICMP
	// errors for the host side, SYNs beyond the limits. It borrows the slice for the call.
	// nil drops them.
	InjectPacket func(packet []byte) error

	Host4, Stack4 netip.Addr // H and S; zero turns IPv4 off
	Host6, Stack6 netip.Addr // zero turns IPv6 off

	MTU     uint32                      // host side's, in bytes; 0 is the link's
	WireMTU func(dst netip.Addr) uint32 // wire side's, in bytes; nil, or a result of 0, is MTU

	Outbound    func(src, dst netip.AddrPort) Rule                                 // nil: opportunistic
	Inbound     func(local, remote netip.AddrPort) (rule Rule, ok bool)            // nil: no inbound connections
	OriginalDst func(remote, stack netip.AddrPort) (local netip.AddrPort, ok bool) // what the remote dialled before DNAT; nil: stack
	Listening   func(port uint16, client netip.AddrPort) bool                      // is there a local service; nil: yes

	Cache *tcpcrypt.Cache // sessions to resume; nil: no resumption. Not closed by the Stack

	Existing []Flow // at most maxFlows are kept

	NoRACK bool // recover from loss by SACK alone, without RACK's timers

	// KeepAlive is how wire peers are found to be dead: encrypted ones by rekeying, others
	// by TCP's keep-alive. The zero value is after 5 minutes, and 4 times 30 seconds; a
	// negative Idle is never.
	KeepAlive tcp.KeepAlive

	Limits Limits // zero fields are the defaults of limits.go

	Log *slog.Logger // nil discards

	timing timing // zero fields are the defaults of limits.go
}

// Limits bound what programs and peers can make the stack hold. A zero field means
// the default.
type Limits struct {
	Dials       int // outbound connections waiting for the far end
	DialsPerDst int // of these, to one address and port
	HalfOpen    int // inbound connections whose handshake is not complete, and local dials
	Flows       int // connections that pass in clear, by tuple (existing ones, and those beyond Dials)
}

func (l Limits) withDefaults() Limits {
	set := func(v *int, def int) {
		if *v <= 0 {
			*v = def
		}
	}
	set(&l.Dials, maxDials)
	set(&l.DialsPerDst, maxDialsPerDst)
	set(&l.HalfOpen, maxHalfOpen)
	set(&l.Flows, maxFlows)
	return l
}

// timing is what tests shorten.
type timing struct {
	firstSYNGap, synGapSlack time.Duration
}

func (t timing) withDefaults() timing {
	if t.firstSYNGap == 0 {
		t.firstSYNGap = firstSYNGap
	}
	if t.synGapSlack == 0 {
		t.synGapSlack = synGapSlack
	}
	return t
}

func (o *Options) check() error {
	if o.Link == nil {
		return errors.New("stack: no link")
	}
	if !o.Stack4.IsValid() && !o.Stack6.IsValid() {
		return errors.New("stack: neither an IPv4 nor an IPv6 address")
	}
	for _, a := range []struct {
		name  string
		host  netip.Addr
		stack netip.Addr
		ok    func(netip.Addr) bool
	}{
		{"IPv4", o.Host4, o.Stack4, netip.Addr.Is4},
		{"IPv6", o.Host6, o.Stack6, func(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }},
	} {
		if a.host.IsValid() != a.stack.IsValid() {
			return fmt.Errorf("stack: %s needs both the host's and the stack's address", a.name)
		}
		if a.stack.IsValid() && (!a.ok(a.stack) || !a.ok(a.host) || a.host == a.stack) {
			return fmt.Errorf("stack: %s and %s are not two %s addresses", a.host, a.stack, a.name)
		}
	}
	return nil
}
