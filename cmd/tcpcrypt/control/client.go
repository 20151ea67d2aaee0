package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// PathConns is the route of Client.Conns. With the query closed=true it also lists
// those that have ended.
const PathConns = "/v1/conns"

const (
	maxErrorBody = 4 << 10 // of what a daemon says beside an error status
	runSocket    = "/run/tcpcrypt.sock"
)

// ErrNotRunning means that nobody answers on the socket.
var ErrNotRunning = errors.New("no daemon is running there")

// DefaultSocket is where the daemon listens if it is not told otherwise:
// /run/tcpcrypt.sock, or for an ordinary user tcpcrypt.sock in $XDG_RUNTIME_DIR.
func DefaultSocket() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" && os.Geteuid() != 0 {
		return filepath.Join(dir, "tcpcrypt.sock")
	}
	return runSocket
}

// A Client asks one daemon. It may be used by several goroutines at once.
type Client struct {
	Socket string // "" means DefaultSocket

	// Dial, if not nil, connects instead of dialling Socket.
	Dial func(ctx context.Context) (net.Conn, error)
}

// Conns lists the daemon's connections: those that are opening or open, and with
// closed also the last ones that have ended (60 s, at most 1,024). The error is
// ErrNotRunning, or matches fs.ErrPermission, or is what went wrong.
func (c *Client) Conns(ctx context.Context, closed bool) ([]Conn, error) {
	path := PathConns
	if closed {
		path += "?closed=true"
	}
	conns := []Conn{}
	if err := c.get(ctx, path, &conns); err != nil {
		return nil, err
	}
	return conns, nil
}

func (c *Client) socket() string {
	if c.Socket != "" {
		return c.Socket
	}
	return DefaultSocket()
}

func (c *Client) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if c.Dial != nil {
		return c.Dial(ctx)
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", c.socket())
}

func (c *Client) get(ctx context.Context, path string, reply any) error {
	transport := &http.Transport{DialContext: c.dial, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	// The host is not looked up: dial knows where to go.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://tcpcrypt"+path, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: %w", c.socket(), ErrNotRunning)
	case err != nil:
		return fmt.Errorf("%s: %w", c.socket(), cause(err))
	}
	defer func() { _ = resp.Body.Close() }() // only read
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // it is only a text
		return fmt.Errorf("%s: %s: %s", c.socket(), resp.Status, strings.TrimSpace(string(said)))
	}
	if err := json.NewDecoder(resp.Body).Decode(reply); err != nil {
		return fmt.Errorf("%s: cannot read the answer: %w", c.socket(), err)
	}
	return nil
}

// cause drops the URL that net/http puts before every error: it is made up.
func cause(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		var op *net.OpError
		if errors.As(err, &op) {
			return op.Err
		}
		err = next
	}
}
