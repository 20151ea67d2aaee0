package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/daemon"
)

func newUp() *cobra.Command {
	var file, socket, level string
	cmd := &cobra.Command{
		Use:   "up -c FILE",
		Short: "Encrypt what the configuration names, until stopped",
		Long: `Captures the TCP connections that the configuration's rules name, and encrypts those whose other end can. Stays in
the foreground and logs to standard error; one line with the word 'ready' says that everything stands. SIGINT,
SIGTERM or the end of its terminal stops it: captured connections are reset, and everything that was changed on the host is undone.

Needs root, or CAP_NET_ADMIN over the network namespace.`,
		Example: `  sudo tcpcrypt up -c tcpcrypt.toml

  # tcpcrypt.toml: web and database between two subnets, never in clear
  [[outbound]]
  to     = ["10.20.0.0/16"]
  ports  = ["80", "5432"]
  policy = "require"           # or opportunistic, bypass

  [[inbound]]
  ports  = ["80", "5432"]
  policy = "require"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := parseLevel(level)
			if err != nil {
				return err
			}
			c, err := readConfig(cmd.ErrOrStderr(), file)
			if err != nil {
				return err
			}
			ctx, stop := untilHangup(cmd.Context())
			defer stop()
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: l}))
			return daemon.Run(ctx, daemon.Options{Config: c, Socket: socket, Log: log})
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration `FILE`")
	cmd.Flags().StringVar(&socket, "socket", control.DefaultSocket(), "`PATH` of the control socket")
	cmd.Flags().StringVar(&level, "log-level", "info", "least `LEVEL` to log: debug, info, warn or error")
	_ = cmd.MarkFlagRequired("config") // fails only for flags that are not there
	cmd.PreRunE = func(*cobra.Command, []string) error {
		_, err := parseLevel(level)
		return errors.Join(err, checkSocket(socket))
	}
	return cmd
}

// untilHangup ends ctx when the terminal goes away, too: what up has set up is to be
// undone then. Unless nohup says otherwise. A reader of the log that goes away ends
// nothing: without this the next line of the log would, and undo nothing.
func untilHangup(ctx context.Context) (context.Context, context.CancelFunc) {
	signal.Ignore(syscall.SIGPIPE)
	if signal.Ignored(syscall.SIGHUP) {
		return context.WithCancel(ctx)
	}
	return endedBy(ctx, syscall.SIGHUP)
}

// checkSocket refuses what a user cannot mean, and Go would take for something else: ""
// and what begins with @ are sockets that have no file, so no mode.
func checkSocket(path string) error {
	if path == "" || strings.HasPrefix(path, "@") {
		return fmt.Errorf("--socket %q: want the path of a file", path)
	}
	return nil
}

func parseLevel(s string) (l slog.Level, err error) {
	if err := l.UnmarshalText([]byte(s)); err != nil {
		return l, fmt.Errorf("--log-level %s: want debug, info, warn or error", s)
	}
	return l, nil
}
