package daemon

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/config"
	"github.com/tcpcrypt/tcpcrypt/routing"
	"github.com/tcpcrypt/tcpcrypt/stack"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
	"github.com/tcpcrypt/tcpcrypt/tun"
)

// stackOptions translates between routing, which knows the host, and stack, which
// knows connections.
func (d *daemon) stackOptions(link *tun.Endpoint, flows []routing.Flow) stack.Options {
	existing := make([]stack.Flow, len(flows))
	for i, f := range flows {
		existing[i] = stack.Flow{Src: f.Src, Dst: f.Dst, Policy: policy(f.Policy)}
	}
	return stack.Options{
		Link:         link,
		InjectPacket: link.WritePacket,
		Host4:        d.config.Host4, Stack4: d.config.Stack4,
		Host6: d.config.Host6, Stack6: d.config.Stack6,
		MTU:         uint32(d.config.MTU),
		WireMTU:     d.host.WireMTU,
		Outbound:    d.outbound,
		Inbound:     d.inbound,
		OriginalDst: d.originalDst,
		Listening:   d.listening,
		Existing:    existing,
		Cache:       d.cache,
		KeepAlive:   keepAlive(d.o.Config.Crypto.KeepAlive),
		Log:         d.log,
	}
}

// keepAlive is how a connection's peer is found to be dead that is idle for so long; 0:
// it is not looked for. Four answers may stay away, a tenth of the time apart.
func keepAlive(idle time.Duration) tcp.KeepAlive {
	if idle == 0 {
		return tcp.KeepAlive{Idle: -1} // the zero value is the stack's default
	}
	return tcp.KeepAlive{Idle: idle, Interval: min(max(idle/10, time.Second), 30*time.Second), Count: 4}
}

func cacheOptions(c config.Crypto) tcpcrypt.CacheOptions {
	return tcpcrypt.CacheOptions{Entries: c.Sessions, Age: c.SessionAge}
}

func (d *daemon) crypto() tcpcrypt.Options {
	c := d.o.Config.Crypto
	return tcpcrypt.Options{
		TEPs: c.TEPs, AEADs: c.AEADs,
		ApplicationAware: c.ApplicationAware, RequireApplicationAware: c.RequireApplicationAware,
		MaxKeyBytes: c.RekeyBytes, MaxKeyFrames: c.RekeyFrames, MaxKeyAge: c.RekeyAfter,
		ShortNonce: 8 - c.Nonce,
	}
}

// outbound is the policy of a connection that the kernel has captured. No rule: the
// kernel's rules and the table agree, so this is a packet that someone routed to the
// device by hand, and it is relayed in clear as its route would have it.
func (d *daemon) outbound(_, dst netip.AddrPort) stack.Rule {
	i, p, ok := d.table.Outbound(dst)
	if !ok {
		return stack.Rule{Policy: stack.Bypass, Label: "no rule"}
	}
	return stack.Rule{Policy: policy(p), Options: d.crypto(), Label: fmt.Sprintf("outbound[%d]", i),
		NoResumption: !d.o.Config.Outbound[i].Resumption}
}

func (d *daemon) inbound(local, _ netip.AddrPort) (stack.Rule, bool) {
	i, p, ok := d.table.Inbound(local.Port())
	if !ok {
		return stack.Rule{}, false
	}
	return stack.Rule{Policy: policy(p), Options: d.crypto(), Label: fmt.Sprintf("inbound[%d]", i),
		NoResumption: !d.o.Config.Inbound[i].Resumption}, true
}

func (d *daemon) originalDst(remote, s netip.AddrPort) (netip.AddrPort, bool) {
	local, err := d.host.OriginalDst(remote, s)
	return local, err == nil
}

// listening answers no if the kernel cannot be asked: the remote is refused rather
// than left with a connection to nobody.
func (d *daemon) listening(port uint16, client netip.AddrPort) bool {
	yes, err := d.host.Listening(port, client)
	return err == nil && yes
}

func policy(p routing.Policy) stack.Policy {
	switch p {
	case routing.Require:
		return stack.Require
	case routing.Bypass:
		return stack.Bypass
	default:
		return stack.Opportunistic
	}
}
