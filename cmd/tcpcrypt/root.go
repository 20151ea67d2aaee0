package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

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
	err := checkCommand(root, args)
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
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

// checkCommand refuses a command that does not exist. Cobra does so itself, but for
// one with --help behind it, which gets the root's help and success.
func checkCommand(root *cobra.Command, args []string) error {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(args...)
	cmd, rest, err := root.Find(args)
	if err != nil || cmd != root {
		return err
	}
	for _, arg := range rest {
		switch {
		case arg == cobra.ShellCompRequestCmd, arg == cobra.ShellCompNoDescRequestCmd: // from a shell's completion
			return nil
		case !strings.HasPrefix(arg, "-"): // the root's flags take no arguments
			return fmt.Errorf("unknown command %q for %q", arg, root.Name())
		}
	}
	return nil
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
	root.Version = fullVersion()
	root.SetVersionTemplate("tcpcrypt {{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetHelpCommand(newHelp(root))
	root.AddCommand(newUp(), newCheck(), newConns(), newSessions(), newRemembered(), newFlush(), newRekey(), newLab(), newVersion())
	return root
}

// newHelp is cobra's own but that help about a command that does not exist is wrong
// usage, not a success.
func newHelp(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about any command",
		Args: func(_ *cobra.Command, args []string) error {
			_, rest, err := root.Find(args)
			if err == nil && len(rest) > 0 {
				err = fmt.Errorf("help: there is no command %q", strings.Join(args, " "))
			}
			return err
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) (names []string, d cobra.ShellCompDirective) {
			for _, sub := range root.Commands() {
				if len(args) == 0 && sub.IsAvailableCommand() {
					names = append(names, sub.Name()+"\t"+sub.Short)
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, _, err := root.Find(args)
			if err != nil {
				return err
			}
			cmd.InitDefaultHelpFlag() // or the help does not list it
			return cmd.Help()
		},
	}
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
