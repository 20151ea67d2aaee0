package routing

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A term is a part of an nftables rule, as text in nft's syntax and as what goes to
// the kernel.
type term struct {
	text  string
	exprs []expr.Any
}

// An nftRule is a list of terms, the last of them a verdict or a statement, and a
// comment that says what it is for.
type nftRule struct {
	comment string
	terms   []term
}

func (r nftRule) String() string {
	var words []string
	for _, t := range r.terms {
		words = append(words, t.text)
	}
	if r.comment != "" {
		words = append(words, fmt.Sprintf("comment %q", r.comment))
	}
	return strings.Join(words, " ")
}

func rule(comment string, terms ...term) nftRule { return nftRule{comment, terms} }

// An nftChain is a chain with its rules; hook is nil for one that is jumped to.
type nftChain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority int32
	rules    []nftRule
}

// String is the chain in nft's syntax.
func (c nftChain) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "chain %s {\n", c.name)
	if c.hook != nil {
		fmt.Fprintf(&b, "\ttype %s hook %s priority %d; policy accept;\n", c.kind, hookNames[*c.hook], c.priority)
	}
	for _, r := range c.rules {
		fmt.Fprintf(&b, "\t%s\n", r)
	}
	b.WriteString("}\n")
	return b.String()
}

var hookNames = map[nftables.ChainHook]string{
	*nftables.ChainHookPrerouting:  "prerouting",
	*nftables.ChainHookInput:       "input",
	*nftables.ChainHookForward:     "forward",
	*nftables.ChainHookOutput:      "output",
	*nftables.ChainHookPostrouting: "postrouting",
}

// add puts the chain without its rules into t, to be sent by the connection's next
// Flush.
func (c nftChain) add(conn *nftables.Conn, t *nftables.Table) *nftables.Chain {
	chain := &nftables.Chain{Name: c.name, Table: t}
	if c.hook != nil {
		chain.Type, chain.Hooknum, chain.Priority = c.kind, c.hook, nftables.ChainPriorityRef(nftables.ChainPriority(c.priority))
	}
	return conn.AddChain(chain)
}

func (r nftRule) add(conn *nftables.Conn, chain *nftables.Chain) {
	var exprs []expr.Any
	for _, t := range r.terms {
		exprs = append(exprs, t.exprs...)
	}
	var data []byte
	if r.comment != "" {
		data = userdata.Append(nil, userdata.TypeComment, append([]byte(r.comment), 0))
	}
	conn.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: exprs, UserData: data})
}

func interfaceName(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}

func compare(op expr.CmpOp, data []byte) *expr.Cmp { return &expr.Cmp{Op: op, Register: 1, Data: data} }

func iif(name string) term { return device("iifname", expr.MetaKeyIIFNAME, expr.CmpOpEq, name) }
func oif(name string) term { return device("oifname", expr.MetaKeyOIFNAME, expr.CmpOpEq, name) }

// notIif and notOif match packets of any but the named devices.
func notIif(names ...string) term {
	return devices("iifname", expr.MetaKeyIIFNAME, names)
}

func notOif(names ...string) term {
	return devices("oifname", expr.MetaKeyOIFNAME, names)
}

func device(word string, key expr.MetaKey, op expr.CmpOp, name string) term {
	sign := ""
	if op == expr.CmpOpNeq {
		sign = "!= "
	}
	return term{fmt.Sprintf("%s %s%q", word, sign, name),
		[]expr.Any{&expr.Meta{Key: key, Register: 1}, compare(op, interfaceName(name))}}
}

func devices(word string, key expr.MetaKey, names []string) term {
	var all term
	for i, n := range names {
		one := device(word, key, expr.CmpOpNeq, n)
		if i > 0 {
			all.text += " "
		}
		all.text += one.text
		all.exprs = append(all.exprs, one.exprs...)
	}
	return all
}

func iifIn(set *nftables.Set) term {
	return term{"iifname @" + set.Name, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}}
}

func ipVersion(v int) term {
	name, proto := "ipv4", byte(unix.NFPROTO_IPV4)
	if v == 6 {
		name, proto = "ipv6", unix.NFPROTO_IPV6
	}
	return term{"meta nfproto " + name, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, compare(expr.CmpOpEq, []byte{proto})}}
}

// loadAddr loads the source or destination address into register 1.
func loadAddr(v int, source bool) (string, []expr.Any) {
	word, field, offset := "ip", "daddr", uint32(16)
	if source {
		field, offset = "saddr", 12
	}
	length := uint32(4)
	if v == 6 {
		word, length, offset = "ip6", 16, 24
		if source {
			offset = 8
		}
	}
	return word + " " + field, append(ipVersion(v).exprs,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length})
}

func saddr(a netip.Addr) term { return address(a, true, expr.CmpOpEq) }
func daddr(a netip.Addr) term { return address(a, false, expr.CmpOpEq) }

func address(a netip.Addr, source bool, op expr.CmpOp) term {
	text, load := loadAddr(version(a), source)
	sign := " "
	if op == expr.CmpOpNeq {
		sign = " != "
	}
	return term{text + sign + a.String(), append(load, compare(op, a.AsSlice()))}
}

func tcp() term {
	return term{"meta l4proto tcp", []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, compare(expr.CmpOpEq, []byte{unix.IPPROTO_TCP})}}
}

// firstSYN matches the segment that opens a connection.
func firstSYN() term {
	const finSynRstAck, syn = 0x17, 0x02
	return term{"tcp flags & (fin | syn | rst | ack) == syn", append(tcp().exprs,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{finSynRstAck}, Xor: []byte{0}},
		compare(expr.CmpOpEq, []byte{syn}))}
}

func dportIn(set *nftables.Set) term { return portIn("dport", 2, set, false) }
func sportIn(set *nftables.Set) term { return portIn("sport", 0, set, false) }
func sportNotIn(set *nftables.Set) term {
	return portIn("sport", 0, set, true)
}

func portIn(word string, offset uint32, set *nftables.Set, invert bool) term {
	sign := ""
	if invert {
		sign = "!= "
	}
	return term{fmt.Sprintf("tcp %s %s@%s", word, sign, set.Name), append(tcp().exprs,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: invert})}
}

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// toLocal matches packets for an address of this host.
func toLocal() term {
	return term{"fib daddr type local", []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, compare(expr.CmpOpEq, native32(unix.RTN_LOCAL))}}
}

func ctReply() term    { return ctDirection("reply", 1) }
func ctOriginal() term { return ctDirection("original", 0) }

func ctDirection(word string, d byte) term {
	return term{"ct direction " + word, []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, compare(expr.CmpOpEq, []byte{d})}}
}

// marked matches packets that are not to be captured.
func marked() term {
	return term{fmt.Sprintf("meta mark & %#x != 0", mark), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(mark), Xor: native32(0)},
		compare(expr.CmpOpNeq, native32(0))}}
}

// inPrefix matches the source or destination address.
func inPrefix(p netip.Prefix, source bool) term {
	text, load := loadAddr(version(p.Addr()), source)
	n := uint32(p.Addr().BitLen() / 8)
	return term{text + " " + shortPrefix(p), append(load,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: n, Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, n)},
		compare(expr.CmpOpEq, p.Masked().Addr().AsSlice()))}
}

// inRange matches the source or destination port.
func inRange(r PortRange, source bool) term {
	word, offset := "dport", uint32(2)
	if source {
		word, offset = "sport", 0
	}
	return term{fmt.Sprintf("tcp %s %v", word, r), append(tcp().exprs,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Range{Op: expr.CmpOpEq, Register: 1,
			FromData: binary.BigEndian.AppendUint16(nil, r.First), ToData: binary.BigEndian.AppendUint16(nil, r.Last)})}
}

func ctBits(text string, key expr.CtKey, bits uint32) term {
	return term{text, []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(bits), Xor: native32(0)},
		compare(expr.CmpOpNeq, native32(0))}}
}

func ctRedirected() term {
	const dstNAT = 1 << 5 // IPS_DST_NAT
	return ctBits("ct status dnat", expr.CtKeySTATUS, dstNAT)
}

func ctMarked(bits uint32) term {
	return ctBits(fmt.Sprintf("ct mark & %#x != 0", bits), expr.CtKeyMARK, bits)
}

func orMark(load, store expr.Any) []expr.Any {
	return []expr.Any{load,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(^uint32(mark)), Xor: native32(mark)},
		store}
}

func setCtMark() term {
	return term{fmt.Sprintf("ct mark set ct mark or %#x", mark), orMark(
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true})}
}

func setMark() term {
	return term{fmt.Sprintf("meta mark set meta mark or %#x", mark), orMark(
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true})}
}

func verdict(kind expr.VerdictKind, word, chain string) term {
	return term{strings.TrimSpace(word + " " + chain), []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}}
}

func accept() term           { return verdict(expr.VerdictAccept, "accept", "") }
func drop() term             { return verdict(expr.VerdictDrop, "drop", "") }
func goBack() term           { return verdict(expr.VerdictReturn, "return", "") }
func jump(chain string) term { return verdict(expr.VerdictJump, "jump", chain) }

func rejectReset() term {
	return term{"reject with tcp reset", append(tcp().exprs, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})}
}

// rejectProhibited makes a connection fail with "no route to host".
func rejectProhibited() term {
	return term{"reject with icmpx admin-prohibited", []expr.Any{
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}}
}

func masquerade() term { return term{"masquerade", []expr.Any{&expr.Masq{}}} }

func nfFamily(v int) uint32 {
	if v == 4 {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

func ipWord(v int) string {
	if v == 4 {
		return "ip"
	}
	return "ip6"
}

// keepSource is source NAT to the same address: it settles that no later rule of
// anybody's translates it.
func keepSource(v int) term {
	text, load := loadAddr(v, true)
	return term{fmt.Sprintf("snat %s to %s", ipWord(v), text),
		append(load, &expr.NAT{Type: expr.NATTypeSourceNAT, Family: nfFamily(v), RegAddrMin: 1})}
}

func redirectTo(a netip.Addr) term {
	v := version(a)
	return term{fmt.Sprintf("dnat %s to %v", ipWord(v), a), []expr.Any{
		&expr.Immediate{Register: 1, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: nfFamily(v), RegAddrMin: 1}}}
}

// maxElements bounds the elements of a set that go to the kernel at once: their
// attribute has a length of 16 bits.
const maxElements = 1000

// portSet is a named set of port ranges, which must be sorted and merged.
func portSet(conn *nftables.Conn, t *nftables.Table, name string, ports []PortRange) (*nftables.Set, error) {
	set := &nftables.Set{Table: t, Name: name, Interval: true, KeyType: nftables.TypeInetService, KeyByteOrder: binaryutil.BigEndian}
	var elements []nftables.SetElement
	for _, r := range ports {
		elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(r.First)})
		if r.Last < allPorts.Last { // else the interval has no end
			elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(r.Last + 1), IntervalEnd: true})
		}
	}
	if err := conn.AddSet(set, nil); err != nil {
		return nil, err
	}
	for some := range slices.Chunk(elements, maxElements) {
		if err := conn.SetAddElements(set, some); err != nil {
			return nil, err
		}
	}
	return set, nil
}

// nameSet is a named set of device names.
func nameSet(conn *nftables.Conn, t *nftables.Table, name string) (*nftables.Set, error) {
	set := &nftables.Set{Table: t, Name: name, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
	return set, conn.AddSet(set, nil)
}

// findTable gives the owner's port of an nftables table of ours, 0 if it has no owner.
func findTable(name string) (owner uint32, found bool, err error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, false, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(name), 0)}})
	if err != nil {
		return 0, false, err
	}
	answers, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETTABLE, Flags: netlink.Request},
		Data:   append([]byte{unix.NFPROTO_INET, 0, 0, 0}, attrs...),
	})
	if errors.Is(err, unix.ENOENT) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	for _, m := range answers {
		if len(m.Data) < 4 {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return 0, false, err
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			if ad.Type() == tableOwnerAttr {
				owner = ad.Uint32()
			}
		}
		if err := ad.Err(); err != nil {
			return 0, false, err
		}
	}
	return owner, true, nil
}

const (
	tableOwnerAttr = 7 // NFTA_TABLE_OWNER
	tableOwnerFlag = 2 // NFT_TABLE_F_OWNER
)

// claimTable creates a table that nobody else can change and that goes when the
// connection is closed, or the process ends. EEXIST means that somebody has it.
//
// The library forgets the flags when it adds a table, so the first message goes out
// by hand on its socket.
func claimTable(name string) (*nftables.Conn, error) {
	var raw *netlink.Conn
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		raw = c
		return nil
	}))
	if err != nil {
		return nil, err
	}
	if err := createOwned(raw, name); err != nil {
		return nil, errors.Join(err, conn.CloseLasting())
	}
	return conn, nil
}

func createOwned(raw *netlink.Conn, name string) error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, tableOwnerFlag)},
	})
	if err != nil {
		return err
	}
	batch := func(kind netlink.HeaderType) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: kind, Flags: netlink.Request},
			Data:   []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES},
		}
	}
	_, err = raw.SendMessages([]netlink.Message{
		batch(unix.NFNL_MSG_BATCH_BEGIN),
		{
			Header: netlink.Header{
				Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE,
				Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl,
			},
			Data: append([]byte{unix.NFPROTO_INET, 0, 0, 0}, attrs...),
		},
		batch(unix.NFNL_MSG_BATCH_END),
	})
	if err != nil {
		return err
	}
	_, err = raw.Receive()
	return err
}
