package daemon

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

// The main thread stays where it is: another network namespace is one of a thread, and
// what asks for this process's would find that one.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start serves one connection on a socket in a directory of the test's.
func start(t *testing.T) (s *server, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	s, err := listen(path, new(fake), quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, path
}

func TestServerAnswers(t *testing.T) {
	s, path := start(t)
	for closed, want := range map[bool]int{false: 1, true: 2} {
		conns, err := (&control.Client{Socket: path}).Conns(t.Context(), closed)
		if err != nil || len(conns) != want {
			t.Errorf("closed %v: %v, %v; want %d", closed, conns, err, want)
		}
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if _, err := (&control.Client{Socket: path}).Conns(t.Context(), false); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("after Close: %v", err)
	}
}

// TestServerSocketIsPrivate: nobody else may ask, not even for the moment between the
// making of the socket and a change of its mode.
func TestServerSocketIsPrivate(t *testing.T) {
	_, path := start(t)
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode(); got.Perm() != 0o600 || got.Type() != os.ModeSocket {
		t.Errorf("mode %v, want a socket of 0600", got)
	}
}

func TestServerTakesTheWayOfAStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as after kill -9
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := listen(path, new(fake), quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, err := (&control.Client{Socket: path}).Conns(t.Context(), false); err != nil {
		t.Error(err)
	}
}

// TestServerLeavesWhatIsNotItsOwn: a live daemon's socket, a file, a directory that is
// not there. Each error names the path and a way out.
func TestServerLeavesWhatIsNotItsOwn(t *testing.T) {
	_, live := start(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		live: "another daemon answers there", file: "something else is there", "/nowhere/at/all": "no such file or directory",
	} {
		s, err := listen(path, nil, quiet())
		if err == nil {
			_ = s.Close()
			t.Errorf("%s: listens there", path)
			continue
		}
		var e *Error
		if !errors.As(err, &e) || e.Hint() == "" || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q and a hint", path, err, want)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "kept" {
		t.Errorf("the file has %q, %v", b, err)
	}
	if _, err := (&control.Client{Socket: live}).Conns(t.Context(), false); err != nil {
		t.Errorf("the live daemon: %v", err)
	}
}

// TestServerBoundsItsClients: more than clientLimit at once are sent away, and places
// come free again.
func TestServerBoundsItsClients(t *testing.T) {
	_, path := start(t)
	var held []net.Conn
	for range clientLimit {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	if _, err := (&control.Client{Socket: path}).Conns(t.Context(), false); err == nil {
		t.Error("one too many was served")
	}
	for _, c := range held {
		_ = c.Close()
	}
	for { // the server hears of it in its own time
		if _, err := (&control.Client{Socket: path}).Conns(t.Context(), false); err == nil {
			return
		}
		if t.Context().Err() != nil {
			t.Fatal("places do not come free")
		}
	}
}
