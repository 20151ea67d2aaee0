package lab

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
)

// reportVersion is raised when a field of Report changes its meaning. Fields are only
// ever added without.
const reportVersion = 1

// maxRows is how many connections the table shows; JSON has them all.
const maxRows = 40

// Report is what a lab has seen, and what --json prints.
type Report struct {
	Version     int          `json:"version"`
	Hosts       []HostReport `json:"hosts"`
	Connections []Connection `json:"connections"`
	Captures    []Capture    `json:"captures"`
	ExitStatus  int          `json:"exit_status"` // the command's
}

// HostReport names a host of a Report.
type HostReport struct {
	Name      string       `json:"name"`
	Plain     bool         `json:"plain"`
	Addresses []netip.Addr `json:"addresses"`
}

func newReport(l *Lab, connections []Connection, status int) *Report {
	r := &Report{
		Version:     reportVersion,
		Connections: append([]Connection{}, connections...), // [] in JSON, never null
		Captures:    append([]Capture{}, l.Captures()...),
		ExitStatus:  status,
	}
	for _, h := range l.hosts {
		hr := HostReport{Name: h.Name(), Plain: h.Plain(), Addresses: []netip.Addr{h.Addr4()}}
		if haveIPv6() {
			hr.Addresses = append(hr.Addresses, h.Addr6())
		}
		r.Hosts = append(r.Hosts, hr)
	}
	return r
}

func (r *Report) write(w io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	_, err := io.WriteString(w, r.Table())
	return err
}

// Table is the report for people.
func (r *Report) Table() string {
	b := &strings.Builder{}
	daemons := 0
	for _, h := range r.Hosts {
		if !h.Plain {
			daemons++
		}
	}
	switch n := len(r.Connections); {
	case daemons == 0:
		b.WriteString("tcpcrypt lab: no host had a daemon\n")
	case n == 0:
		b.WriteString("tcpcrypt lab: no connection went through a daemon\n")
	default:
		fmt.Fprintf(b, "tcpcrypt lab: %d connection%s\n", n, plural(n))
		t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
		// Nothing fails: it is a strings.Builder.
		_, _ = io.WriteString(t, "FROM\tTO\tENCRYPTED\tSESSION ID\tENDS\tSENT\tRECEIVED\n")
		for _, c := range r.Connections[:min(n, maxRows)] {
			_, _ = io.WriteString(t, strings.Join(c.row(), "\t")+"\n")
		}
		_ = t.Flush()
		if n > maxRows {
			fmt.Fprintf(b, "and %d more: --json has them all\n", n-maxRows)
		}
	}
	for _, c := range r.Captures {
		fmt.Fprintf(b, "capture of %s: %s, %d packet%s", c.Host, c.File, c.Packets, plural(int(c.Packets)))
		if c.Lost > 0 {
			fmt.Fprintf(b, ", and %d LOST: it was too fast", c.Lost)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// row is a connection's line of the table.
func (c *Connection) row() []string {
	view, sent, received := c.Opened, uint64(0), uint64(0)
	if view != nil {
		sent, received = view.BytesSent, view.BytesReceived
	} else {
		view = c.Taken
		sent, received = view.BytesReceived, view.BytesSent
	}
	from, to := view.Local, view.Remote
	if view == c.Taken {
		from, to = to, from
	}

	encrypted, id := "no: "+c.reasons(), "-"
	if view.Encrypted {
		encrypted = "yes: " + text(view.TEP) + " " + text(view.AEAD)
		id = abbreviate(text(view.SessionID))
	}
	return []string{
		named(c.Client, from), named(c.Server, to), encrypted, id, c.ends(),
		fmt.Sprint(sent), fmt.Sprint(received),
	}
}

// ends says whose word the line is, and whether they agree on the session id.
func (c *Connection) ends() string {
	switch {
	case c.Taken == nil:
		return "only " + c.Opened.Host
	case c.Opened == nil:
		return "only " + c.Taken.Host
	case c.SameID == nil:
		return "both"
	case *c.SameID:
		return "both, equal"
	default:
		return "IDS DIFFER"
	}
}

// reasons says why a connection is in clear, by both ends if they do not agree.
func (c *Connection) reasons() string {
	switch {
	case c.Taken == nil:
		return text(c.Opened.Reason)
	case c.Opened == nil:
		return text(c.Taken.Reason)
	case text(c.Opened.Reason) == text(c.Taken.Reason):
		return text(c.Opened.Reason)
	default:
		return c.Opened.Host + " " + text(c.Opened.Reason) + ", " + c.Taken.Host + " " + text(c.Taken.Reason)
	}
}

// named puts a host's name in place of its address, with the family where it is IPv6.
func named(name, addrPort string) string {
	ap, err := netip.ParseAddrPort(addrPort)
	if err != nil || name == "" {
		return addrPort
	}
	if ap.Addr().Is6() {
		name += ".ip6"
	}
	return fmt.Sprintf("%s:%d", name, ap.Port())
}

// abbreviate shortens a session id to what tells it from others.
func abbreviate(id string) string {
	const shown = 16 // hex digits
	if len(id) > shown {
		return id[:shown] + "…"
	}
	return id
}

func text(s *string) string {
	if s == nil || *s == "" {
		return "-"
	}
	return *s
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}
