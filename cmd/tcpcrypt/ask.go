package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

// An asker is the part that all commands have in common that ask the daemon.
type asker struct {
	socket string
	asJSON bool
}

// flags adds --socket, which is checked before check, and --json.
func (a *asker) flags(cmd *cobra.Command, jsonUsage string, check func() error) {
	cmd.Flags().StringVar(&a.socket, "socket", control.DefaultSocket(), "`PATH` of the daemon's control socket")
	cmd.Flags().BoolVar(&a.asJSON, "json", false, jsonUsage)
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if err := checkSocket(a.socket); err != nil || check == nil {
			return err
		}
		return check()
	}
}

func (a *asker) client() *control.Client { return &control.Client{Socket: a.socket} }

// show prints what get lists, as JSON or by table, which is given the time.
func show[T any](cmd *cobra.Command, a *asker, get func(context.Context) ([]T, error), table func(io.Writer, []T, time.Time) error) error {
	all, err := get(cmd.Context())
	switch {
	case err != nil:
		return failed(cmd, err)
	case a.asJSON:
		return writeJSON(cmd.OutOrStdout(), all)
	default:
		return table(cmd.OutOrStdout(), all, time.Now())
	}
}

// failed adds to an error of the client's what to do about it.
func failed(cmd *cobra.Command, err error) error {
	switch {
	case errors.Is(err, control.ErrNotRunning):
		return failure{err, "sudo tcpcrypt up -c FILE, or --socket PATH if it listens elsewhere"}
	case errors.Is(err, fs.ErrPermission):
		return failure{err, "sudo " + cmd.CommandPath()}
	case errors.Is(err, control.ErrNoConn):
		return failure{err, "tcpcrypt conns --closed; a connection that is in no rule, or older than the daemon, is not captured"}
	default:
		return err
	}
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
