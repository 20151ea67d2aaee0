package main

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

func newRekey() *cobra.Command {
	var ask asker
	var ids []uint64
	cmd := &cobra.Command{
		Use:   "rekey [ID...]",
		Short: "Give open connections new keys",
		Long: `Replaces the traffic keys of the connections with these ids (conns shows them), or of all that are open and encrypted, and
makes their peers replace theirs. The old keys are erased, so what was sent before stays closed to whoever takes the new
ones; nothing is interrupted. Prints how many connections. Exit status 1 if one that was named is not open, or not
encrypted.

The daemon does so by itself, by crypto.rekey_bytes, rekey_frames and rekey_after; use this after an incident, or to see
that it works: generation_sent and generation_received of conns --json count up.`,
		Example: `  sudo tcpcrypt rekey
  sudo tcpcrypt rekey 17 18`,
		Args: func(_ *cobra.Command, args []string) error {
			for _, arg := range args {
				id, err := strconv.ParseUint(arg, 10, 64)
				if err != nil {
					return fmt.Errorf("rekey %q: want the id of a connection, a number that tcpcrypt conns shows", arg)
				}
				ids = append(ids, id)
			}
			slices.Sort(ids)
			if ids = slices.Compact(ids); len(ids) > control.MaxRekey {
				return fmt.Errorf("rekey: %d ids; want at most %d, or none for all connections", len(ids), control.MaxRekey)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := ask.client().Rekey(cmd.Context(), ids...)
			if err != nil {
				return failed(cmd, err)
			}
			if ask.asJSON {
				err = writeJSON(cmd.OutOrStdout(), r)
			} else {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), r.Connections)
			}
			if err == nil && r.Connections < len(ids) {
				err = failure{fmt.Errorf("%d of %d connections have new keys; the others are not open, or not encrypted", r.Connections, len(ids)),
					"tcpcrypt conns"}
			}
			return err
		},
	}
	ask.flags(cmd, "print a JSON object with the count", nil)
	return cmd
}
