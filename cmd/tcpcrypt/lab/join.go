package lab

import (
	"cmp"
	"net/netip"
	"slices"
)

// A Connection is what the daemons at its ends tell of one connection.
type Connection struct {
	Client string `json:"client"`           // host that opened it
	Server string `json:"server"`           // host it was opened to; "" if there is none of that address
	Opened *End   `json:"opened"`           // the client's view; null if the client runs no daemon
	Taken  *End   `json:"taken"`            // the server's; null if it runs none, or the SYN never came
	SameID *bool  `json:"same_session_ids"` // null unless both ends are encrypted
}

// join finds the two ends of each connection. Encrypted ones have the session id in
// common, and nothing else does. What is left over is matched by addresses, and then
// by source port and byte counts, since a daemon's own source port need not be the
// application's: so a connection in clear is shown with both ends' reasons, and one
// whose session ids differ, with somebody in the middle, is shown as such.
func join(hosts []*Host, ends []End) []Connection {
	names := make(map[netip.Addr]string)
	order := make(map[string]int)
	for i, h := range hosts {
		names[h.Addr4()], names[h.Addr6()] = h.Name(), h.Name()
		order[h.Name()] = i
	}
	slices.SortFunc(ends, func(a, b End) int {
		return cmp.Or(cmp.Compare(order[a.Host], order[b.Host]), cmp.Compare(a.ID, b.ID))
	})

	byID := make(map[string]*End)
	var taken []*End
	for i := range ends {
		if e := &ends[i]; e.Direction == "inbound" {
			taken = append(taken, e)
			if e.SessionID != nil {
				byID[*e.SessionID] = e
			}
		}
	}
	matched := make(map[*End]bool)
	var all []Connection
	for i := range ends {
		e := &ends[i]
		if e.Direction != "outbound" {
			continue
		}
		c := Connection{Client: e.Host, Server: names[address(e.Remote)], Opened: e}
		if e.SessionID != nil {
			c.Taken = byID[*e.SessionID]
			matched[c.Taken] = true
		}
		all = append(all, c)
	}
	for _, score := range []func(o, t *End) bool{samePort, sameBytes, sameAddresses} {
		for i := range all {
			c := &all[i]
			if c.Taken != nil {
				continue
			}
			for _, t := range taken {
				if !matched[t] && sameAddresses(c.Opened, t) && score(c.Opened, t) {
					c.Taken, matched[t] = t, true
					break
				}
			}
		}
	}
	for _, t := range taken {
		if !matched[t] {
			all = append(all, Connection{Client: names[address(t.Remote)], Server: t.Host, Taken: t})
		}
	}
	for i := range all {
		if c := &all[i]; c.Opened != nil && c.Taken != nil && c.Opened.SessionID != nil && c.Taken.SessionID != nil {
			same := *c.Opened.SessionID == *c.Taken.SessionID
			c.SameID = &same
		}
	}
	return all
}

func sameAddresses(o, t *End) bool {
	return o.Remote == t.Local && address(o.Local) == address(t.Remote) && o.Encrypted == t.Encrypted
}

func samePort(o, t *End) bool { return o.Local == t.Remote }

func sameBytes(o, t *End) bool {
	return o.BytesSent == t.BytesReceived && o.BytesReceived == t.BytesSent
}

// address is the address of "192.0.2.1:80" or "[2001:db8::1]:80"; invalid if s is neither.
func address(s string) netip.Addr {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr()
}
