package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

func newConns() *cobra.Command {
	var ask asker
	var closed bool
	var local, remote string
	var ends [2]netip.AddrPort
	cmd := &cobra.Command{
		Use:   "conns",
		Short: "List the daemon's connections: encrypted with what, or in clear and why",
		Long: `Lists the connections that the daemon has captured, a line each: encrypted with what, or in clear and why. The
session id is the same at both ends exactly if nobody sits between them; --json has it whole.

With --local and --remote only the connection between these two, which a program knows of its own socket by getsockname
and getpeername: how it learns the session id that it binds its own authentication to. A service behind an inbound rule
may give the address that it sees. Exit status 1 if there is no such connection.

Why in clear:
  no-eno         the peer does not do tcpcrypt
  no-common-tep  it does, but has no key exchange in common with us
  same-role      both ends claimed the same role
  stripped       something on the way removed the option after it was agreed on
  fallback       SYNs with the option went unanswered, one without did not
  policy         our rule says so
  limit          too many connections at once
  opening        not decided yet`,
		Example: `  sudo tcpcrypt conns
  sudo tcpcrypt conns --json --closed | jq '.[] | select(.encrypted | not) | [.remote, .reason]'
  sudo tcpcrypt conns --json --local 192.0.2.1:40112 --remote 203.0.113.5:80 | jq -r '.[].session_id'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var conns []control.Conn
			var err error
			if local == "" {
				conns, err = ask.client().Conns(cmd.Context(), closed)
			} else {
				conns = make([]control.Conn, 1)
				conns[0], err = ask.client().Conn(cmd.Context(), ends[0], ends[1])
			}
			if err != nil {
				return failed(cmd, err)
			}
			if ask.asJSON {
				return writeJSON(cmd.OutOrStdout(), conns)
			}
			return writeConns(cmd.OutOrStdout(), conns)
		},
	}
	ask.flags(cmd, "print a JSON array, every field of every connection", func() (err error) {
		ends, err = parseEnds(local, remote)
		if err == nil && local != "" && closed {
			err = errors.New("--closed: does not go with --local and --remote, which show no connection that has ended")
		}
		return err
	})
	cmd.Flags().BoolVar(&closed, "closed", false, "also those that ended in the last 60 seconds")
	cmd.Flags().StringVar(&local, "local", "", "only the connection with this `ADDRESS:PORT` of the program's, and --remote")
	cmd.Flags().StringVar(&remote, "remote", "", "the `ADDRESS:PORT` of its other end")
	return cmd
}

// parseEnds reads --local and --remote: both or none.
func parseEnds(local, remote string) (ends [2]netip.AddrPort, err error) {
	if local == "" && remote == "" {
		return ends, nil
	}
	for i, e := range []struct{ flag, value string }{{"--local", local}, {"--remote", remote}} {
		if e.value == "" {
			return ends, fmt.Errorf("%s: is missing; --local and --remote go together", e.flag)
		}
		if ends[i], err = netip.ParseAddrPort(e.value); err != nil {
			return ends, fmt.Errorf("%s %q: want an address with port, such as 192.0.2.1:80 or [2001:db8::1]:80", e.flag, e.value)
		}
	}
	return ends, nil
}

// writeConns writes the table. A session id is shown by its first bytes: enough for
// the eye to compare.
func writeConns(w io.Writer, conns []control.Conn) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tDIRECTION\tLOCAL\tREMOTE\tSTATE\tENCRYPTED\tROLE\tSESSION ID\tSENT\tRECEIVED")
	for _, c := range conns {
		how := "no: " + orDash(c.Reason)
		if c.Encrypted {
			how = "yes: " + orDash(c.TEP) + " " + orDash(c.AEAD)
			if c.Resumed {
				how += " resumed"
			}
		}
		id := orDash(c.SessionID)
		if len(id) > 18 {
			id = id[:18] + "…"
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\n", c.ID, c.Direction, c.Local, c.Remote, c.State, how,
			orDash(c.Role), id, c.BytesSent, c.BytesReceived)
	}
	return t.Flush()
}

func orDash(s *string) string {
	if s == nil {
		return "-"
	}
	return *s
}
