package routing

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ownedTable is our nftables table with the owner flag: NAT and filters that must not
// outlive us. Its existence is what says that an instance is alive.
const ownedTable = "tcpcrypt"

// Priorities of chains. Ours come just before those that Docker and firewalls use, so
// that the first NAT rule to match is ours.
const (
	beforeConntrack = -300
	mangle          = -150
	beforeDstNAT    = -110
	filter          = 0
	beforeSrcNAT    = 90
)

// A nat is the owned table in the kernel.
type nat struct {
	conn  *nftables.Conn
	table *nftables.Table
	// closed holds, per IP version, the devices on which the host would not forward but
	// for us, if they can be told apart.
	closed map[int]*nftables.Set
}

func claimNAT() (*nat, error) {
	conn, err := claimTable(ownedTable)
	if errors.Is(err, unix.EEXIST) {
		return nil, ErrRunning
	}
	if err != nil {
		return nil, err
	}
	return &nat{conn: conn, table: &nftables.Table{Name: ownedTable, Family: nftables.TableFamilyINet}, closed: map[int]*nftables.Set{}}, nil
}

// release drops the table. Closing the socket would, too, but tells nothing.
func (n *nat) release() error {
	n.conn.DelTable(n.table)
	return errors.Join(n.conn.Flush(), n.conn.CloseLasting())
}

// outsideChain shuts H and S to everybody else. It sees packets as they were on the
// wire, where these addresses can only be forged or strayed: what legitimately gets
// there is translated later.
func outsideChain(c Config) nftChain {
	chain := nftChain{name: "outside", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: beforeConntrack}
	for _, v := range []int{4, 6} {
		f := c.family(v)
		if !f.on() {
			continue
		}
		outside := notIif(c.Interface, "lo")
		chain.rules = append(chain.rules,
			rule("the link is not reachable from outside", outside, daddr(f.stack), drop()),
			rule("the link is not reachable from outside", outside, daddr(f.host), drop()),
			rule("nobody else has the link's addresses", outside, saddr(f.stack), drop()),
			rule("nobody else has the link's addresses", outside, saddr(f.host), drop()))
	}
	return chain
}

// forwardChains keep the host from routing for strangers where it does forward only
// because we need it. Packets of the device pass; to the device may go what answers
// them, and what our redirection sends to S.
func (n *nat) forwardChains(c Config, all []int) []nftChain {
	forward := nftChain{name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, priority: filter}
	strangers := nftChain{name: "strangers"}
	var strict []nftRule
	strangers.rules = append(strangers.rules, rule("answers to S", oif(c.Interface), ctReply(), goBack()))
	for _, v := range []int{4, 6} {
		f := c.family(v)
		if !f.on() {
			continue
		}
		from := ipVersion(v)
		set := n.closed[v]
		if set != nil {
			from = term{from.text + " " + iifIn(set).text, append(from.exprs, iifIn(set).exprs...)}
		}
		invalid := ctBits("ct state invalid", expr.CtKeySTATE, expr.CtStateBitINVALID)
		forward.rules = append(forward.rules, rule("would leave untranslated", iif(c.Interface), saddr(f.stack), invalid, drop()))
		if set == nil && !slices.Contains(all, v) {
			continue
		}
		strict = append(strict, rule("would not be forwarded without us", from, jump(strangers.name)))
		strangers.rules = append(strangers.rules, rule("inbound", oif(c.Interface), ctRedirected(), daddr(f.stack), goBack()))
	}
	forward.rules = append(append(forward.rules, rule("", iif(c.Interface), goBack())), strict...)
	strangers.rules = append(strangers.rules, rule("not a router because of us", drop()))
	return []nftChain{strangers, forward}
}

// sourceChain lets S out under the address of the uplink, and keeps the source of
// what goes into the device: a container's client must not look like H.
func sourceChain(c Config) nftChain {
	chain := nftChain{name: "source", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, priority: beforeSrcNAT}
	for _, v := range []int{4, 6} {
		if f := c.family(v); f.on() {
			chain.rules = append(chain.rules,
				rule("the client's own address", oif(c.Interface), ipVersion(v), keepSource(v)),
				rule("the way out", notOif(c.Interface), saddr(f.stack), masquerade()))
		}
	}
	return chain
}

// inboundChain redirects new connections of other hosts to S. Only their first
// segment: conntrack may see connections that are older than itself, and those stay
// where they are.
func inboundChain(c Config, ports *nftables.Set) nftChain {
	chain := nftChain{name: "inbound", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting, priority: beforeDstNAT}
	for _, v := range []int{4, 6} {
		if f := c.family(v); f.on() {
			chain.rules = append(chain.rules, rule("the way in",
				notIif(c.Interface, "lo"), ipVersion(v), toLocal(), firstSYN(), dportIn(ports), redirectTo(f.stack)))
		}
	}
	return chain
}

// maxBatch bounds the rules that go to the kernel at once. It answers every one, and
// the answers must fit into the socket's buffer.
const maxBatch = 32

// addChains adds chains and their rules.
func addChains(conn *nftables.Conn, t *nftables.Table, chains ...nftChain) error {
	n := 0
	for _, c := range chains {
		chain := c.add(conn, t)
		for _, r := range c.rules {
			r.add(conn, chain)
			if n++; n == maxBatch {
				n = 0
				if err := conn.Flush(); err != nil {
					return fmt.Errorf("chain %s: %w", c.name, err)
				}
			}
		}
	}
	return conn.Flush()
}

// addFilters makes everything but the way in. perDevice are the IP versions in which
// devices are told apart, all those in which every device is closed to strangers.
func (n *nat) addFilters(c Config, perDevice, all []int) error {
	for _, v := range perDevice {
		set, err := nameSet(n.conn, n.table, fmt.Sprintf("closed%d", v))
		if err != nil {
			return err
		}
		n.closed[v] = set
	}
	if err := n.conn.Flush(); err != nil {
		return err
	}
	chains := append([]nftChain{outsideChain(c)}, n.forwardChains(c, all)...)
	return addChains(n.conn, n.table, append(chains, sourceChain(c))...)
}

// setClosed adds a device to, or removes it from, those on which the host would not
// forward without us.
func (n *nat) setClosed(version int, name string, closed bool) error {
	set := n.closed[version]
	if set == nil {
		return nil
	}
	e := []nftables.SetElement{{Key: interfaceName(name)}}
	var err error
	if closed {
		err = n.conn.SetAddElements(set, e)
	} else {
		err = n.conn.SetDeleteElements(set, e)
	}
	return errors.Join(err, n.conn.Flush())
}

func (n *nat) addInbound(c Config, ports []PortRange) error {
	set, err := portSet(n.conn, n.table, "inbound_ports", ports)
	if err != nil {
		return err
	}
	return addChains(n.conn, n.table, inboundChain(c, set))
}

func (n *nat) removeInbound() error {
	chain := &nftables.Chain{Name: "inbound", Table: n.table}
	n.conn.FlushChain(chain)
	n.conn.DelChain(chain)
	n.conn.DelSet(&nftables.Set{Table: n.table, Name: "inbound_ports", KeyType: nftables.TypeInetService, KeyByteOrder: binaryutil.BigEndian})
	return n.conn.Flush()
}
