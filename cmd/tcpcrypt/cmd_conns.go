package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

func newConns() *cobra.Command {
	var socket string
	var asJSON, closed bool
	cmd := &cobra.Command{
		Use:   "conns",
		Short: "List the daemon's connections: encrypted with what, or in clear and why",
		Long: `Lists the connections that the daemon has captured, a line each: encrypted with what, or in clear and why. The
session id is the same at both ends exactly if nobody sits between them; --json has it whole.

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
  sudo tcpcrypt conns --json --closed | jq '.[] | select(.encrypted | not) | [.remote, .reason]'`,
		Args:    cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error { return checkSocket(socket) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := control.Client{Socket: socket}
			conns, err := c.Conns(cmd.Context(), closed)
			switch {
			case errors.Is(err, control.ErrNotRunning):
				return failure{err, "sudo tcpcrypt up -c FILE, or --socket PATH if it listens elsewhere"}
			case errors.Is(err, fs.ErrPermission):
				return failure{err, "sudo tcpcrypt conns"}
			case err != nil:
				return err
			}
			if asJSON {
				return writeConnsJSON(cmd.OutOrStdout(), conns)
			}
			return writeConns(cmd.OutOrStdout(), conns)
		},
	}
	cmd.Flags().StringVar(&socket, "socket", control.DefaultSocket(), "`PATH` of the daemon's control socket")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array, every field of every connection")
	cmd.Flags().BoolVar(&closed, "closed", false, "also those that ended in the last 60 seconds")
	return cmd
}

func writeConnsJSON(w io.Writer, conns []control.Conn) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(conns)
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
