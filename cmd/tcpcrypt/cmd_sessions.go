package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

func newSessions() *cobra.Command {
	var ask asker
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "List the sessions that later connections may be resumed from",
		Long: `Lists the sessions that the daemon keeps, a line each, oldest first; never a secret. A connection that is resumed from
one needs no key exchange, and its first data goes out a round trip earlier. Look here when connections are not
resumed that you expect to be (conns says 'resumed' of those that are), or before a flush.

OPENED BY tells who opened the connection that made the session: only where it was us do our next opens to that address
and port resume it; the peer may resume any. NEXT is the index of the secret that the next connection uses: each is
used once, and then erased. crypto.session_age and crypto.sessions bound how long and how many are kept; they are in
memory only, and gone when the daemon stops.`,
		Example: `  sudo tcpcrypt sessions
  sudo tcpcrypt sessions --json | jq -r '.[].peer'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, &ask, ask.client().Sessions, writeSessions)
		},
	}
	ask.flags(cmd, "print a JSON array", nil)
	return cmd
}

func writeSessions(w io.Writer, sessions []control.Session, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "PEER\tOPENED BY\tTEP\tAEAD\tNEXT\tAGE\tEXPIRES IN")
	for _, s := range sessions {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", s.Peer, s.OpenedBy, s.TEP, s.AEAD, s.NextIndex,
			seconds(now.Sub(s.Created)), seconds(s.Expires.Sub(now)))
	}
	return t.Flush()
}

// seconds is d for a table. Clocks may differ by a little.
func seconds(d time.Duration) string { return max(d, 0).Truncate(time.Second).String() }
