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
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// The routes. What changes something is POST, with its parameters in the query and no
// body.
const (
	PathConns      = "/v1/conns"      // GET; closed=true also lists those that have ended
	PathConn       = "/v1/conn"       // GET; local=ADDRESS:PORT and remote=ADDRESS:PORT; 404 if there is none
	PathSessions   = "/v1/sessions"   // GET
	PathRemembered = "/v1/remembered" // GET
	PathFlush      = "/v1/flush"      // POST; peer=ADDRESS, all without
	PathRekey      = "/v1/rekey"      // POST; id=N, any number of times, all without
)

// MaxRekey is how many connections one Client.Rekey may name.
const MaxRekey = 512

const (
	maxErrorBody = 4 << 10 // of what a daemon says beside an error status
	runSocket    = "/run/tcpcrypt.sock"
)

var (
	// ErrNotRunning means that nobody answers on the socket.
	ErrNotRunning = errors.New("no daemon is running there")

	// ErrNoConn means that the daemon has no such connection: it has ended, or the daemon
	// did not capture it, or it is not a connection of this host.
	ErrNoConn = errors.New("no such connection")
)

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
	query := url.Values{}
	if closed {
		query.Set("closed", "true")
	}
	return list[Conn](ctx, c, PathConns, query)
}

// Conn returns the connection of this pair of addresses, of those that have not ended.
// local is the program's end, as getsockname tells it: of an inbound connection that
// may be the address that the remote dialled, or the one that the service sees. The
// error is as that of Conns, or ErrNoConn.
//
// Compare the session id over the connection, or bind your own authentication to it:
// it is the same at both ends exactly if nobody sits between them.
func (c *Client) Conn(ctx context.Context, local, remote netip.AddrPort) (Conn, error) {
	var conn Conn
	err := c.ask(ctx, http.MethodGet, PathConn, url.Values{"local": {local.String()}, "remote": {remote.String()}}, &conn)
	var status *statusError
	if errors.As(err, &status) && status.code == http.StatusNotFound {
		return Conn{}, fmt.Errorf("%s: %w from %s to %s", c.socket(), ErrNoConn, local, remote)
	}
	return conn, err
}

// Sessions lists what later connections may be resumed from. The error is as that of
// Conns.
func (c *Client) Sessions(ctx context.Context) ([]Session, error) {
	return list[Session](ctx, c, PathSessions, nil)
}

// Remembered lists the destinations that the option does not reach. The error is as
// that of Conns.
func (c *Client) Remembered(ctx context.Context) ([]Remembered, error) {
	return list[Remembered](ctx, c, PathRemembered, nil)
}

// Flush makes the daemon forget the sessions with peer, and what it remembers of peer
// as a destination; the zero Addr means all peers. Connections go on. The error is as
// that of Conns.
func (c *Client) Flush(ctx context.Context, peer netip.Addr) (f Flushed, err error) {
	query := url.Values{}
	if peer.IsValid() {
		query.Set("peer", peer.String())
	}
	err = c.ask(ctx, http.MethodPost, PathFlush, query, &f)
	return f, err
}

// Rekey gives connections new keys, and makes their peers do the same: those of the
// ids, at most MaxRekey, or without any all that are open and encrypted. Ids that are
// not are not counted. The error is as that of Conns.
func (c *Client) Rekey(ctx context.Context, ids ...uint64) (r Rekeyed, err error) {
	query := url.Values{}
	for _, id := range ids {
		query.Add("id", strconv.FormatUint(id, 10))
	}
	err = c.ask(ctx, http.MethodPost, PathRekey, query, &r)
	return r, err
}

// list gets an array, which is not nil.
func list[T any](ctx context.Context, c *Client, path string, query url.Values) ([]T, error) {
	all := []T{}
	if err := c.ask(ctx, http.MethodGet, path, query, &all); err != nil {
		return nil, err
	}
	return all, nil
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

func (c *Client) ask(ctx context.Context, method, path string, query url.Values, reply any) error {
	transport := &http.Transport{DialContext: c.dial, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	// The host is not looked up: dial knows where to go.
	to := url.URL{Scheme: "http", Host: "tcpcrypt", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, to.String(), nil)
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
		return fmt.Errorf("%s: %w", c.socket(), &statusError{resp.StatusCode, resp.Status, strings.TrimSpace(string(said))})
	}
	if err := json.NewDecoder(resp.Body).Decode(reply); err != nil {
		return fmt.Errorf("%s: cannot read the answer: %w", c.socket(), err)
	}
	return nil
}

// A statusError is a daemon's refusal.
type statusError struct {
	code         int
	status, said string
}

func (e *statusError) Error() string { return e.status + ": " + e.said }

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
