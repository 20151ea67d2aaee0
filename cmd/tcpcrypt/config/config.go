// Package config reads the daemon's configuration: TOML, checked as a whole, so that
// one run shows all that is wrong with it.
//
//	c, problems := config.Parse("tcpcrypt.toml", data)
//	for _, p := range problems {
//		fmt.Fprintln(os.Stderr, p) // tcpcrypt.toml:7: outbound[1].policy: unknown policy "requir"
//	}
package config

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"

	"github.com/tcpcrypt/tcpcrypt/routing"
)

// A Config is a configuration with every default filled in.
type Config struct {
	Interface Interface
	Crypto    Crypto
	Outbound  []Outbound
	Inbound   []Inbound
}

// Interface is the [interface] table: the TUN device and the link's addresses.
type Interface struct {
	Name          string
	Host4, Stack4 netip.Addr // H and S
	Host6, Stack6 netip.Addr
	MTU           int // in bytes
}

// An Outbound rule is routing's, and what its connections do with sessions.
type Outbound struct {
	routing.Outbound
	Resumption bool // offer, accept and keep sessions
}

// An Inbound rule, likewise.
type Inbound struct {
	routing.Inbound
	Resumption bool
}

// Resumes reports whether any rule that encrypts does so.
func (c *Config) Resumes() bool {
	return slices.ContainsFunc(c.Outbound, func(o Outbound) bool { return o.Resumption && o.Policy != routing.Bypass }) ||
		slices.ContainsFunc(c.Inbound, func(in Inbound) bool { return in.Resumption && in.Policy != routing.Bypass })
}

// DefaultMTU is the device's: as large as IP allows, so that the kernel never cuts what
// it could hand over whole.
const DefaultMTU = 65535

// Default is the configuration of an empty file. It has no rules.
func Default() *Config {
	return &Config{
		Interface: Interface{
			Name:   "tcpcrypt0",
			Host4:  netip.MustParseAddr("198.18.0.1"),
			Stack4: netip.MustParseAddr("198.18.0.2"),
			Host6:  netip.MustParseAddr("fd74:6370:6372::1"),
			Stack6: netip.MustParseAddr("fd74:6370:6372::2"),
			MTU:    DefaultMTU,
		},
		Crypto: defaultCrypto(),
	}
}

// A Problem is something wrong with a configuration.
type Problem struct {
	File string
	Line int    // from 1
	Key  string // e.g. outbound[1].policy; "" for syntax errors
	Text string // what is wrong, and what would be right
}

// String returns "FILE:LINE: key: text".
func (p Problem) String() string {
	if p.Key == "" {
		return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text)
	}
	return fmt.Sprintf("%s:%d: %s: %s", p.File, p.Line, p.Key, p.Text)
}

// sortProblems puts them in the order of the file.
func sortProblems(ps []Problem) {
	sort.SliceStable(ps, func(i, j int) bool { return ps[i].Line < ps[j].Line })
}
