package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/tcpcrypt/tcpcrypt/routing"
)

// Exit statuses.
const (
	statusDone   = 0
	statusFailed = 1
	statusUsage  = 2
)

// run runs one command line and returns the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	started := false
	markStart(root, &started)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return statusDone
	}
	var status interface{ ExitStatus() int }
	if errors.As(err, &status) {
		return status.ExitStatus() // it has said what there is to say
	}
	complain(stderr, err)
	if !started {
		return statusUsage
	}
	return statusFailed
}

// complain writes an error, and what to do about it if it knows.
func complain(w io.Writer, err error) {
	fmt.Fprintf(w, "tcpcrypt: %v\n", err)
	var hint interface{ Hint() string }
	var host *routing.Error
	switch {
	case errors.As(err, &hint) && hint.Hint() != "":
		fmt.Fprintf(w, "  try: %s\n", hint.Hint())
	case errors.As(err, &host) && host.Fix != "":
		fmt.Fprintf(w, "  try: %s\n", host.Fix)
	}
}

// markStart makes every command of the tree set *started when its own code begins:
// what fails before is wrong usage.
func markStart(cmd *cobra.Command, started *bool) {
	if body := cmd.RunE; body != nil {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			*started = true
			return body(c, args)
		}
	}
	for _, sub := range cmd.Commands() {
		markStart(sub, started)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "tcpcrypt",
		Short: "Encrypt TCP between hosts that both run it",
		Long: `Encrypts the TCP connections that your configuration names, with every host that can do it too, and leaves the
others as they are, or refuses them if you say so. No certificates, no change to programs.

Exit status: 0 done, 1 failed, 2 wrong usage; lab passes on its command's.`,
		Example: `  tcpcrypt lab --serve 'b=python3 -m http.server 80' -- curl http://b/
  sudo tcpcrypt up -c tcpcrypt.toml
  sudo tcpcrypt conns`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs, // or a command that does not exist would get the help, and 0
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newUp(), newCheck(), newConns(), newLab(), newVersion())
	return root
}

// A failure is an error with what to do about it.
type failure struct {
	error
	hint string
}

// Unwrap returns the cause.
func (f failure) Unwrap() error { return f.error }

// Hint returns what to do.
func (f failure) Hint() string { return f.hint }
