package daemon

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

// TestSessionsOfTwoDaemons is two daemons on the two ends of a link: what their sockets
// say of a connection between them, and of the session that it leaves.
func TestSessionsOfTwoDaemons(t *testing.T) {
	if !inNetns(t) {
		return
	}
	there := uplink(t)
	l := echoes(t, there)
	server := upThere(t, there, "[[inbound]]\nports = ['80']\n")
	client := up(t, "[[outbound]]\nto = ['10.1.1.0/24', 'fd01::/64']\n").here()

	for i, to := range []string{"10.1.1.2:80", "[fd01::2]:80"} {
		c := dial(t, to)
		service := <-l
		ours := client.conn(c.LocalAddr(), c.RemoteAddr())
		asDialled := server.conn(c.RemoteAddr(), service.RemoteAddr()) // whose port source NAT chose
		asServed := server.conn(service.LocalAddr(), service.RemoteAddr())
		if !ours.Encrypted || ours.SessionID == nil || asServed.SessionID == nil || *ours.SessionID != *asServed.SessionID || asServed.ID != asDialled.ID {
			t.Errorf("%s: %s here, %s and %s there", to, asJSON(t, ours), asJSON(t, asDialled), asJSON(t, asServed))
		}
		_, err := server.Conn(t.Context(), addr(t, c.LocalAddr()), addr(t, c.RemoteAddr())) // the wrong way round
		if !errors.Is(err, control.ErrNoConn) {
			t.Errorf("of another connection: %v", err)
		}
		// One end is asked, and both replace their keys; an id that nobody has does not count.
		asked := []struct {
			*remote
			id uint64
		}{{client, ours.ID}, {server, asServed.ID}}[i]
		if n, err := asked.Rekey(t.Context(), asked.id, 1<<60); err != nil || n.Connections != 1 {
			t.Errorf("rekey: %+v, %v", n, err)
		}
		client.awaitRekeyed(c.LocalAddr(), c.RemoteAddr())
		server.awaitRekeyed(service.LocalAddr(), service.RemoteAddr())
		for r, want := range map[*remote]control.Session{
			client: {Peer: to, OpenedBy: "us", Role: "A", TEP: "curve25519", AEAD: "aes128gcm", NextIndex: 1},
			server: {OpenedBy: "peer", Role: "B", TEP: "curve25519", AEAD: "aes128gcm", NextIndex: 1},
		} {
			s := r.awaitSessions(i + 1)[i]
			if want.OpenedBy == "peer" {
				want.Peer = service.RemoteAddr().String()
			}
			if life := s.Expires.Sub(s.Created); life != time.Hour {
				t.Errorf("lives for %v", life)
			}
			s.ID, s.Created, s.Expires = 0, time.Time{}, time.Time{}
			if s != want {
				t.Errorf("session %+v, want %+v", s, want)
			}
		}
	}

	for _, tc := range []struct {
		peer netip.Addr
		want int
	}{{netip.MustParseAddr("10.1.1.3"), 0}, {netip.MustParseAddr("10.1.1.2"), 1}, {netip.Addr{}, 1}, {netip.Addr{}, 0}} {
		if f, err := client.Flush(t.Context(), tc.peer); err != nil || f.Sessions != tc.want {
			t.Errorf("flush %v: %+v, %v; want %d", tc.peer, f, err, tc.want)
		}
	}
	client.awaitSessions(0)
}

// TestRuleWithoutResumptionKeepsNothing, and resumes nothing, though the peer would.
func TestRuleWithoutResumptionKeepsNothing(t *testing.T) {
	if !inNetns(t) {
		return
	}
	there := uplink(t)
	echoes(t, there)
	upThere(t, there, "[[inbound]]\nports = ['80']\n")
	r := up(t, "[[outbound]]\nto = ['10.1.1.0/24']\nresumption = false\n[crypto]\nnonce = 0\n")
	client := r.here()
	if n := strings.Count(r.log.String(), "without a nonce"); n != 0 {
		t.Errorf("%d warnings of a nonce that is never used", n)
	}
	for range 2 {
		c := dial(t, "10.1.1.2:80")
		if conn := client.conn(c.LocalAddr(), c.RemoteAddr()); !conn.Encrypted || conn.Resumed {
			t.Errorf("%s", asJSON(t, conn))
		}
		_ = c.Close()
	}
	client.awaitSessions(0)
}

// TestResumptionWithoutNonceIsWarnedOf once, where there is any.
func TestResumptionWithoutNonceIsWarnedOf(t *testing.T) {
	if !inNetns(t) {
		return
	}
	uplink(t)
	r := up(t, both+"\n[crypto]\nnonce = 0\n")
	if n := strings.Count(r.log.String(), "without a nonce"); n != 1 {
		t.Errorf("%d warnings, want one:\n%s", n, r.log)
	}
}

// TestRememberedDestination: where SYNs with the option are lost, that is remembered
// after two connections, listed, and flushed.
func TestRememberedDestination(t *testing.T) {
	if !inNetns(t) {
		return
	}
	there := uplink(t)
	echoes(t, there)
	there(func() {
		command(t, "nft", "add table inet box; add chain inet box in { type filter hook prerouting priority -300; }; "+
			"add rule inet box in tcp option 69 exists drop")
	})
	r := up(t, "[[outbound]]\nto = ['10.1.1.0/24']\n").here()
	for range 2 {
		_ = dial(t, "10.1.1.2:80").Close()
	}
	got, err := r.Remembered(t.Context())
	if err != nil || len(got) != 1 || got[0].Peer != "10.1.1.2:80" || got[0].Reason != "fallback" || got[0].Until.Sub(got[0].Since) != 10*time.Minute {
		t.Fatalf("remembered %+v, %v", got, err)
	}
	for _, tc := range []struct {
		peer string
		want int
	}{{"10.1.1.3", 0}, {"10.1.1.2", 1}, {"10.1.1.2", 0}} {
		if f, err := r.Flush(t.Context(), netip.MustParseAddr(tc.peer)); err != nil || f.Remembered != tc.want || f.Sessions != 0 {
			t.Errorf("flush %s: %+v, %v; want %d", tc.peer, f, err, tc.want)
		}
	}
	if got, err := r.Remembered(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("after a flush: %+v, %v", got, err)
	}
}

// A remote is a daemon, by its socket.
type remote struct {
	t *testing.T
	control.Client
}

// What a child of a test gets in its environment that is to be a daemon.
const remoteDoc, remoteSocket = "TCPCRYPT_TEST_REMOTE_DOC", "TCPCRYPT_TEST_REMOTE_SOCKET"

// TestRemoteDaemon is no test but such a child.
func TestRemoteDaemon(t *testing.T) {
	doc, socket := os.Getenv(remoteDoc), os.Getenv(remoteSocket)
	if doc == "" {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &record{ready: make(chan struct{})}
	go func() {
		<-r.ready
		_, _ = os.Stdout.WriteString("stands\n")
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test closes it
		cancel()
	}()
	if err := Run(ctx, options(t, doc, socket, r)); err != nil {
		t.Fatalf("%v\n%s", err, r)
	}
}

// upThere is a daemon on the other end of the uplink, ready, in a process of its own: a
// network namespace is one of a thread, and a daemon has many. It is stopped with the
// test.
func upThere(t *testing.T, there func(func()), doc string) *remote {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", "-test.run=^TestRemoteDaemon$")
	cmd.Env = append(os.Environ(), remoteDoc+"="+doc, remoteSocket+"="+socket)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	there(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(out)
	t.Cleanup(func() {
		_ = in.Close()
		rest, _ := io.ReadAll(said)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the daemon there: %v\n%s", err, rest)
		}
	})
	if line, err := said.ReadString('\n'); line != "stands\n" {
		t.Fatalf("the daemon there says %q, %v", line, err)
	}
	return &remote{t, control.Client{Socket: socket}}
}

// here is a daemon of this process, by its socket.
func (r *run) here() *remote { return &remote{r.t, control.Client{Socket: r.socket}} }

// echoes accepts and echoes there on port 80, and gives away what it has accepted.
func echoes(t *testing.T, there func(func())) <-chan net.Conn {
	t.Helper()
	var l net.Listener
	var err error
	there(func() { l, err = net.Listen("tcp", ":80") })
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 16)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return accepted
}

// dial connects and brings a byte there and back: the connection is open at both ends.
func dial(t *testing.T, to string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return c
}

func addr(t *testing.T, a net.Addr) netip.AddrPort {
	t.Helper()
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		t.Fatalf("no TCP address: %v", a)
	}
	return tcp.AddrPort()
}

// conn is the connection between two addresses.
func (r *remote) conn(local, peer net.Addr) control.Conn {
	r.t.Helper()
	c, err := r.Conn(r.t.Context(), addr(r.t, local), addr(r.t, peer))
	if err != nil {
		r.t.Error(err)
	}
	return c
}

// awaitRekeyed waits until both keys of a connection were replaced.
func (r *remote) awaitRekeyed(local, peer net.Addr) {
	r.t.Helper()
	var c control.Conn
	for until := time.Now().Add(patience); time.Now().Before(until); wait(r.t) {
		if c = r.conn(local, peer); c.GenerationSent > 0 && c.GenerationReceived > 0 {
			return
		}
	}
	r.t.Errorf("keys are not replaced: %+v", c)
}

// awaitSessions waits until there are n sessions: one is kept after the key exchange.
func (r *remote) awaitSessions(n int) (sessions []control.Session) {
	r.t.Helper()
	for until := time.Now().Add(patience); time.Now().Before(until); wait(r.t) {
		var err error
		if sessions, err = r.Sessions(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
		if len(sessions) == n {
			return sessions
		}
	}
	r.t.Fatalf("sessions %+v, want %d", sessions, n)
	return nil
}
