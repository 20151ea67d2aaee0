package config

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"

	"github.com/tcpcrypt/tcpcrypt/routing"
)

const (
	minMTU = 1280 // IPv6's least
	maxMTU = 65535

	maxName = 15 // IFNAMSIZ - 1
)

// Parse reads a configuration. With problems there is no Config. file is only for the
// problems' texts.
func Parse(file string, data []byte) (*Config, []Problem) {
	if !utf8.Valid(data) {
		line := 1
		for rest := data; ; {
			c, n := utf8.DecodeRune(rest)
			if c == utf8.RuneError && n <= 1 {
				break
			}
			if c == '\n' {
				line++
			}
			rest = rest[n:]
		}
		return nil, []Problem{{File: file, Line: line, Text: "not UTF-8 text"}}
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // some editors begin a file with this mark
	var doc map[string]any
	if err := toml.Unmarshal(data, &doc); err != nil {
		return nil, []Problem{syntaxProblem(file, data, err)}
	}
	r := &reader{file: file, lines: lines(data)}
	c := Default()
	root := r.root(doc, "interface", "crypto", "outbound", "inbound")
	c.readInterface(root.table("interface", "name", "host4", "stack4", "host6", "stack6", "mtu", "on_exit"))
	c.Crypto.read(root.table("crypto", cryptoKeys...))
	for _, t := range root.tables("outbound", "to", "except", "ports", "policy", "resumption") {
		c.Outbound = append(c.Outbound, Outbound{readOutbound(t), resumption(t, c.Crypto.Resumption)})
	}
	for _, t := range root.tables("inbound", "ports", "policy", "deliver", "proxy_protocol", "resumption") {
		c.Inbound = append(c.Inbound, Inbound{readInbound(t), resumption(t, c.Crypto.Resumption)})
	}
	if len(c.Outbound) == 0 && len(c.Inbound) == 0 && len(r.problems) == 0 {
		r.add("", "there is nothing to do: want at least one [[outbound]] or [[inbound]] rule")
	}
	if len(r.problems) == 0 {
		// What only the whole can tell.
		if err := c.Routing().Validate(); err != nil {
			var e *routing.Error
			if errors.As(err, &e) && e.Fix != "" {
				err = fmt.Errorf("%w; %s", e.Err, e.Fix)
			}
			r.add("", "%v", err)
		}
	}
	if len(r.problems) > 0 {
		sortProblems(r.problems)
		return nil, r.problems
	}
	return c, nil
}

// syntaxProblem tells of a document that is no TOML.
func syntaxProblem(file string, data []byte, err error) Problem {
	p := Problem{File: file, Line: 1, Text: strings.TrimPrefix(err.Error(), "toml: ")}
	var de *toml.DecodeError
	if !errors.As(err, &de) {
		return p
	}
	p.Line, _ = de.Position()
	p.Key = strings.Join(de.Key(), ".")
	if strings.Contains(p.Text, "already") { // the decoder's word for a name that comes again
		p.Text = "is there twice; want it once"
		if table := tableAt(data, p.Line); table != "" && len(de.Key()) == 1 && table != p.Key {
			p.Key = table + "." + p.Key
		}
	}
	return p
}

// tableAt is the name of the table that a line of the document is in, "" for none.
// The document need not parse.
func tableAt(data []byte, line int) (name string) {
	for i, l := range bytes.Split(data, []byte("\n")) {
		if i >= line {
			break
		}
		header, _, _ := bytes.Cut(l, []byte("#"))
		header = bytes.TrimSpace(header)
		if len(header) > 2 && header[0] == '[' && header[len(header)-1] == ']' {
			name = strings.Trim(string(header), "[] \t")
		}
	}
	return name
}

// Routing is the part of the configuration that the host's network is set up from.
func (c *Config) Routing() routing.Config {
	r := routing.Config{
		Interface: c.Interface.Name,
		Host4:     c.Interface.Host4, Stack4: c.Interface.Stack4,
		Host6: c.Interface.Host6, Stack6: c.Interface.Stack6,
		MTU: c.Interface.MTU,
	}
	for _, o := range c.Outbound {
		r.Outbound = append(r.Outbound, o.Outbound)
	}
	for _, in := range c.Inbound {
		r.Inbound = append(r.Inbound, in.Inbound)
	}
	return r
}

func (c *Config) readInterface(t table) {
	i := &c.Interface
	if s, ok := t.str("name"); ok {
		i.Name = s
		if bad := badName(s); bad != "" {
			t.add("name", "%q %s", s, bad)
		}
	}
	for _, a := range []struct {
		key  string
		addr *netip.Addr
		v4   bool
	}{{"host4", &i.Host4, true}, {"stack4", &i.Stack4, true}, {"host6", &i.Host6, false}, {"stack6", &i.Stack6, false}} {
		s, ok := t.str(a.key)
		if !ok {
			continue
		}
		addr, err := netip.ParseAddr(s)
		family := map[bool]string{true: "IPv4", false: "IPv6"}[a.v4]
		switch {
		case err != nil, addr.Is4() != a.v4, addr.Zone() != "":
			t.add(a.key, "%q is not an %s address; want one without prefix length, such as %q", s, family, a.addr.String())
		case !addr.IsGlobalUnicast(), addr.Is4In6(): // private ones are, too
			t.add(a.key, "%s cannot be the address of a link; want an otherwise unused one, such as %q", s, a.addr.String())
		default:
			*a.addr = addr
		}
	}
	if i.Host4 == i.Stack4 {
		t.add("stack4", "is the same address as host4; want two, both otherwise unused")
	}
	if i.Host6 == i.Stack6 {
		t.add("stack6", "is the same address as host6; want two, both otherwise unused")
	}
	if n, ok := t.integer("mtu"); ok {
		if n < minMTU || n > maxMTU {
			t.add("mtu", "%d is out of range; want %d to %d bytes", n, minMTU, maxMTU)
		} else {
			i.MTU = int(n)
		}
	}
	if s, ok := t.str("on_exit"); ok {
		switch s {
		case "open":
		case "closed":
			t.add("on_exit", `"closed" is not there yet in this version; want "open"`)
		default:
			t.add("on_exit", `unknown value %q; want "open"`, s)
		}
	}
}

func badName(s string) string {
	switch {
	case s == "", s == ".", s == "..", s == "lo", s == "all", s == "default":
		return `cannot name a device; want something like "tcpcrypt0"`
	case len(s) > maxName:
		return fmt.Sprintf("is too long for a device; want at most %d bytes", maxName)
	case strings.ContainsFunc(s, func(r rune) bool {
		return r == '/' || r == ':' || r == '%' || unicode.IsSpace(r) || !unicode.IsPrint(r)
	}):
		return `cannot name a device; want letters, digits, "-", "_" and "." only`
	}
	return ""
}

func readOutbound(t table) (o routing.Outbound) {
	o.To = prefixes(t, "to")
	if ss, given := t.strings("to"); !given || len(ss) == 0 {
		t.addIfAbsent("to", `is missing; want destinations, such as ["10.20.0.0/16", "2001:db8::/32"]`)
	}
	o.Except = prefixes(t, "except")
	if v := t.value("ports"); v != nil {
		if o.Ports = ports(t); len(o.Ports) == 0 && !t.hasProblem("ports") {
			t.add("ports", `is empty; want ports such as ["80", "9000-9100"], or leave it out for all`)
		}
	}
	o.Policy = policy(t)
	return o
}

func readInbound(t table) (in routing.Inbound) {
	if in.Ports = ports(t); len(in.Ports) == 0 && !t.hasProblem("ports") {
		t.addIfAbsent("ports", `is missing; want local ports, such as ["80", "9000-9100"]`)
	}
	in.Policy = policy(t)
	if s, ok := t.str("deliver"); ok {
		switch s {
		case "transparent":
		case "loopback":
			t.add("deliver", `"loopback" is not there yet in this version; want "transparent"`)
		default:
			t.add("deliver", `unknown way %q; want "transparent"`, s)
		}
	}
	if b, ok := t.boolean("proxy_protocol"); ok && b {
		t.add("proxy_protocol", `goes with deliver = "loopback", which is not there yet in this version`)
	}
	return in
}

func policy(t table) routing.Policy {
	s, ok := t.str("policy")
	if !ok {
		return routing.Opportunistic
	}
	p, err := routing.ParsePolicy(s)
	if err != nil {
		t.add("policy", "unknown policy %q; one of: opportunistic, require, bypass", s)
	}
	return p
}

func prefixes(t table, key string) (ps []netip.Prefix) {
	ss, _ := t.strings(key)
	for _, it := range ss {
		p, text := prefix(it.s)
		if text != "" {
			t.add(element(key, it.at), "%s", text)
			continue
		}
		ps = append(ps, p)
	}
	return ps
}

// prefix reads a prefix or a single address; text says what is wrong.
func prefix(s string) (p netip.Prefix, text string) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		if addr.Is4In6() {
			return p, fmt.Sprintf("%q is an IPv4 address in IPv6's clothes; want %q", s, addr.Unmap())
		}
		return netip.PrefixFrom(addr, addr.BitLen()), ""
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, fmt.Sprintf(`%q is neither a prefix nor an address; want one such as "10.20.0.0/16", "192.0.2.7" or "2001:db8::/32"`, s)
	case p.Addr().Is4In6():
		return p, fmt.Sprintf("%q is an IPv4 prefix in IPv6's clothes; want it in IPv4's", s)
	case p != p.Masked():
		return p, fmt.Sprintf("%q has bits set beyond its length; want %q, or %q for that address alone", s, p.Masked(), p.Addr())
	}
	return p, ""
}

// ports reads "ports": strings, or numbers for single ones.
func ports(t table) (rs []routing.PortRange) {
	v := t.value("ports")
	if v == nil {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		t.add("ports", `want a list such as ["80", "9000-9100"], not %s`, kind(v))
		return nil
	}
	for i, e := range list {
		s, ok := e.(string)
		if n, number := e.(int64); number {
			s, ok = fmt.Sprint(n), true
		}
		if !ok {
			t.add(element("ports", i), `want a port or a range such as "80" or "9000-9100", not %s`, kind(e))
			continue
		}
		r, err := routing.ParsePortRange(s)
		if err != nil {
			t.add(element("ports", i), `%q is not a port or a range; want one such as "80" or "9000-9100", from 1 to 65535, the smaller first`, s)
			continue
		}
		rs = append(rs, r)
	}
	return rs
}
