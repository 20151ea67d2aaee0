package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/config"
)

// maxConfig bounds a configuration file: what is larger was named by mistake.
const maxConfig = 1 << 20

func newCheck() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration without touching anything",
		Long: `Checks a configuration as a whole. Silent if it is right; else every problem is a line on standard error,
FILE:LINE: key: what is wrong and what would be right, and the exit status is 1.`,
		Example: `  tcpcrypt check tcpcrypt.toml && sudo tcpcrypt up -c tcpcrypt.toml`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := readConfig(cmd.ErrOrStderr(), args[0])
			return err
		},
	}
}

// told is an exit status whose reason is on standard error already.
type told int

func (t told) Error() string { return fmt.Sprintf("exit status %d", int(t)) }

// ExitStatus returns the status.
func (t told) ExitStatus() int { return int(t) }

// readConfig reads and checks a configuration. Problems are written to stderr.
func readConfig(stderr io.Writer, file string) (*config.Config, error) {
	data, err := readFile(file)
	if err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return nil, fmt.Errorf("cannot read the configuration %s: %w", file, err)
	}
	c, problems := config.Parse(file, data)
	for _, p := range problems {
		fmt.Fprintln(stderr, p)
	}
	if len(problems) > 0 {
		return nil, told(statusFailed)
	}
	return c, nil
}

func readFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(data) > maxConfig {
		err = fmt.Errorf("more than %d bytes are no configuration", maxConfig)
	}
	return data, err
}
