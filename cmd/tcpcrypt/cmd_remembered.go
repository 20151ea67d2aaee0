package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

func newRemembered() *cobra.Command {
	var ask asker
	cmd := &cobra.Command{
		Use:   "remembered",
		Short: "List the destinations that encryption is not offered to for a while, and why",
		Long: `Lists the destinations that the option did not reach twice in a row, because something on the way drops packets with
it or breaks what follows. For ten minutes, opportunistic connections there do not offer encryption and so do not
wait for it in vain: conns says fallback of them. Rules with policy require never look at this list.

Look here when a peer that does tcpcrypt is reached in clear; flush PEER makes the next connection try again.`,
		Example: `  sudo tcpcrypt remembered
  sudo tcpcrypt flush 203.0.113.5`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, &ask, ask.client().Remembered, writeRemembered)
		},
	}
	ask.flags(cmd, "print a JSON array", nil)
	return cmd
}

func writeRemembered(w io.Writer, remembered []control.Remembered, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "PEER\tREASON\tFOR\tUNTIL IN")
	for _, r := range remembered {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", r.Peer, r.Reason, seconds(now.Sub(r.Since)), seconds(r.Until.Sub(now)))
	}
	return t.Flush()
}
