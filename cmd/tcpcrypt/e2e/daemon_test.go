package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/lab"
	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// everything is a configuration under which all TCP within the test's network, wire
// peers too, is captured both ways; crypto is the [crypto] section's content.
func everything(policy, crypto string) string {
	var to []string
	for _, p := range lab.Prefixes() {
		to = append(to, fmt.Sprintf("%q", p))
	}
	return "[crypto]\n" + crypto + "\n\n[[outbound]]\nto = [" + strings.Join(to, ", ") + "]\npolicy = \"" + policy +
		"\"\n\n[[inbound]]\nports = [\"1-30000\"]\npolicy = \"" + policy + "\"\n"
}

const opportunistic, require = "opportunistic", "require"

// A daemon is `tcpcrypt up` on a host.
type daemon struct {
	node *node
	cmd  *lab.Cmd
	done chan struct{} // closed when it has ended and err is set
	err  error         // of Wait

	mu    sync.Mutex
	log   bytes.Buffer
	ready chan struct{} // closed at the first line with that word
}

var readyWord = regexp.MustCompile(`\bready\b`)

// up starts a daemon and waits until it is ready. It is stopped with the test.
func (n *node) up(t *testing.T, config string) *daemon {
	t.Helper()
	d := n.launch(t, config)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-d.ready:
		return d
	case <-d.done:
		t.Fatalf("host %s: tcpcrypt up ended before it was ready: %v\n%s", n.Name(), d.err, d.output())
	case <-timer.C:
		t.Fatalf("host %s: tcpcrypt up is not ready after %v\n%s", n.Name(), patience, d.output())
	}
	return nil
}

// launch starts a daemon without waiting for it.
func (n *node) launch(t *testing.T, config string) *daemon {
	t.Helper()
	file := filepath.Join(n.dir, "tcpcrypt.toml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	d := &daemon{node: n, done: make(chan struct{}), ready: make(chan struct{})}
	d.cmd = n.Command(t.Context(), program, "up", "-c", file, "--socket", n.socket())
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(syscall.SIGTERM) } // with the test
	d.cmd.WaitDelay = patience
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Stdout, d.cmd.Stderr = w, w
	if err := d.cmd.Start(); err != nil {
		t.Fatalf("host %s: tcpcrypt up: %v", n.Name(), err)
	}
	_ = w.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		d.read(r)
	}()
	go func() {
		err := d.cmd.Wait()
		<-read
		d.err = err
		close(d.done)
	}()
	t.Cleanup(func() {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		<-d.done
		if t.Failed() {
			t.Logf("host %s: tcpcrypt up wrote:\n%s", n.Name(), d.output())
		}
		if strings.Contains(d.output(), "panic:") || strings.Contains(d.output(), "DATA RACE") {
			t.Errorf("host %s: tcpcrypt up panicked:\n%s", n.Name(), d.output())
		}
	})
	return d
}

func (n *node) socket() string { return filepath.Join(n.dir, "tcpcrypt.sock") }

func (d *daemon) read(r io.ReadCloser) {
	defer closeQuietly(r)
	lines := bufio.NewReader(r)
	for ready := false; ; {
		line, err := lines.ReadString('\n')
		d.mu.Lock()
		d.log.WriteString(line)
		d.mu.Unlock()
		if !ready && readyWord.MatchString(line) {
			ready = true
			close(d.ready)
		}
		if err != nil {
			return
		}
	}
}

func (d *daemon) output() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

// end sends the signal and waits for the daemon's end.
func (d *daemon) end(t *testing.T, signal syscall.Signal) error {
	t.Helper()
	if err := d.cmd.Process.Signal(signal); err != nil {
		t.Fatalf("host %s: %v to tcpcrypt up: %v\n%s", d.node.Name(), signal, err, d.output())
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-d.done:
		return d.err
	case <-timer.C:
		t.Fatalf("host %s: tcpcrypt up does not end after %v\n%s", d.node.Name(), signal, d.output())
		return nil
	}
}

// stop ends the daemon as an operator does.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	if err := d.end(t, syscall.SIGTERM); err != nil {
		t.Errorf("host %s: tcpcrypt up, after SIGTERM: %v, want exit status 0\n%s", d.node.Name(), err, d.output())
	}
}

// kill ends it as the kernel does when memory is short.
func (d *daemon) kill(t *testing.T) {
	t.Helper()
	_ = d.end(t, syscall.SIGKILL) // the error says just that
}

// exitStatus is a command's, by the error of its end.
func exitStatus(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("no exit status: %v", err)
	}
	return exit.ExitCode()
}

// A conn is one object of `conns --json`, every field of it.
type conn struct {
	ID            any
	Direction     string
	Local, Remote string
	State         string
	Encrypted     bool
	Reason        *string
	Role          *string
	TEP           *string
	AEAD          *string
	SessionID     *string
	Resumed       bool
	BytesSent     int64
	BytesReceived int64

	GenerationSent, GenerationReceived uint64 // how often the keys were changed
	PeerApplicationAware               bool
}

func (c *conn) UnmarshalJSON(b []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return err
	}
	for name, into := range map[string]any{
		"id": &c.ID, "direction": &c.Direction, "local": &c.Local, "remote": &c.Remote, "state": &c.State,
		"encrypted": &c.Encrypted, "reason": &c.Reason, "role": &c.Role, "tep": &c.TEP, "aead": &c.AEAD,
		"session_id": &c.SessionID, "resumed": &c.Resumed, "bytes_sent": &c.BytesSent, "bytes_received": &c.BytesReceived,
		"generation_sent": &c.GenerationSent, "generation_received": &c.GenerationReceived, "peer_application_aware": &c.PeerApplicationAware,
	} {
		raw, there := fields[name]
		if !there {
			return fmt.Errorf("no field %q in %s", name, b)
		}
		if err := json.Unmarshal(raw, into); err != nil {
			return fmt.Errorf("field %q of %s: %w", name, b, err)
		}
	}
	return nil
}

func (c conn) String() string {
	str := func(s *string) string {
		if s == nil {
			return "null"
		}
		return *s
	}
	return fmt.Sprintf("{%v %s %s %s %s encrypted=%t reason=%s role=%s tep=%s aead=%s session_id=%s resumed=%t sent=%d received=%d}",
		c.ID, c.Direction, c.Local, c.Remote, c.State, c.Encrypted, str(c.Reason), str(c.Role), str(c.TEP), str(c.AEAD),
		str(c.SessionID), c.Resumed, c.BytesSent, c.BytesReceived)
}

// conns asks the daemon for all its connections, closed ones too.
func (d *daemon) conns(t *testing.T) []conn {
	t.Helper()
	var stderr strings.Builder
	cmd := d.node.Command(soon(t), program, "conns", "--json", "--closed", "--socket", d.node.socket())
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("host %s: tcpcrypt conns: %v\n%s%s", d.node.Name(), err, out, stderr.String())
	}
	var all []conn
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatalf("host %s: tcpcrypt conns --json: %v\n%s", d.node.Name(), err, out)
	}
	if all == nil {
		t.Fatalf("host %s: tcpcrypt conns --json printed %q, want an array", d.node.Name(), out)
	}
	for _, c := range all {
		if err := c.valid(); err != nil {
			t.Errorf("host %s: tcpcrypt conns --json: %v: %v", d.node.Name(), err, c)
		}
	}
	return all
}

// The closed sets of values.
var (
	directions = []string{"outbound", "inbound"}
	states     = []string{"opening", "open", "closed"}
	reasons    = []string{"no-eno", "no-common-tep", "same-role", "stripped", "fallback", "policy", "limit", "opening"}
	roles      = []string{"A", "B"}
	teps       = []string{"p256", "p521", "curve25519", "curve448"}
	aeads      = []string{"aes128gcm", "aes256gcm", "chacha20poly1305"}

	sessionIDs = regexp.MustCompile("^[0-9a-f]{66}$")
)

// valid holds a connection against what is documented of its fields.
func (c conn) valid() error {
	_, localErr := netip.ParseAddrPort(c.Local)
	_, remoteErr := netip.ParseAddrPort(c.Remote)
	oneOf := func(field *string, set []string) bool { return field != nil && slices.Contains(set, *field) }
	switch {
	case localErr != nil || remoteErr != nil:
		return errors.Join(localErr, remoteErr)
	case !slices.Contains(directions, c.Direction) || !slices.Contains(states, c.State):
		return errors.New("unknown direction or state")
	case c.Encrypted && (c.Reason != nil || !oneOf(c.Role, roles) || !oneOf(c.TEP, teps)):
		return errors.New("encrypted, with a reason or without role and TEP")
	case c.Encrypted && c.AEAD == nil && c.SessionID == nil && c.BytesSent == 0 && c.BytesReceived == 0:
		// ENO has agreed, so it will never be in clear, and the keys are not there yet or
		// never were.
	case c.Encrypted && (!oneOf(c.AEAD, aeads) || c.SessionID == nil || !sessionIDs.MatchString(*c.SessionID)):
		return errors.New("encrypted, without AEAD or session id")
	case !c.Encrypted && (!oneOf(c.Reason, reasons) || c.SessionID != nil || c.Resumed):
		return errors.New("not encrypted, without a reason or with what belongs to the others")
	}
	return nil
}

// conn waits for the one connection that match accepts.
func (d *daemon) conn(t *testing.T, what string, match func(c conn) bool) (found conn) {
	t.Helper()
	eventually(t, what+" in tcpcrypt conns on host "+d.node.Name(), func() error {
		var all []conn
		n := 0
		all = d.conns(t)
		for _, c := range all {
			if match(c) {
				found = c
				n++
			}
		}
		if n != 1 {
			return fmt.Errorf("%d such connections, want 1, among %v", n, all)
		}
		return nil
	})
	return found
}

// is reports whether a nullable field has that value; "" stands for null.
func is(field *string, want string) bool {
	return field == nil && want == "" || field != nil && *field == want
}

// bySession matches the connection of a wirepeer session.
func bySession(s *wirepeer.Session) func(c conn) bool {
	return func(c conn) bool { return is(c.SessionID, fmt.Sprintf("%x", s.ID)) }
}
