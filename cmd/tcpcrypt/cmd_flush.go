package main

import (
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"
)

func newFlush() *cobra.Command {
	var ask asker
	var peer netip.Addr
	cmd := &cobra.Command{
		Use:   "flush [PEER]",
		Short: "Forget sessions and remembered destinations, of one peer or of all",
		Long: `Forgets the sessions that are kept for resumption, wiping their secrets, and the destinations that are remembered not to
be reached by the option; of PEER, an address without port, or of all peers. Prints how many of both together: 0 is
success too. Connections go on; their next ones exchange keys afresh, and offer encryption again.

Use it when a peer was replaced, a secret may have leaked, or a middlebox that dropped the option is gone.`,
		Example: `  sudo tcpcrypt flush
  sudo tcpcrypt flush 203.0.113.5`,
		Args: func(cmd *cobra.Command, args []string) (err error) {
			if err := cobra.MaximumNArgs(1)(cmd, args); err != nil || len(args) == 0 {
				return err
			}
			if peer, err = netip.ParseAddr(args[0]); err != nil {
				return fmt.Errorf("flush %q: want the address of a peer, such as 203.0.113.5 or 2001:db8::1, without port", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := ask.client().Flush(cmd.Context(), peer)
			if err != nil {
				return failed(cmd, err)
			}
			if ask.asJSON {
				return writeJSON(cmd.OutOrStdout(), f)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), f.Sessions+f.Remembered)
			return err
		},
	}
	ask.flags(cmd, "print a JSON object with both counts", nil)
	return cmd
}
