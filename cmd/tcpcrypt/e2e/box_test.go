package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// Middleboxes in the router's kernel: nftables sees TCP options, drops by them and
// overwrites them with NOPs.

// filter is a ruleset of one chain in the router's way from host to host.
func filter(rules ...string) string {
	return "table inet box {\n chain forward {\n  type filter hook forward priority 0;\n" + strings.Join(rules, "\n") + "\n }\n}\n"
}

// box puts a ruleset of nftables into the router.
func (n *network) box(t *testing.T, ruleset string) {
	t.Helper()
	nft := need(t, "nft")
	err := inNamespace(n.router, func() error {
		cmd := exec.CommandContext(t.Context(), nft, "-f", "-")
		cmd.Stdin = strings.NewReader(ruleset)
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	if err != nil {
		t.Fatalf("nft: %v\n%s", err, ruleset)
	}
}

// onRouter runs a program in the router.
func (n *network) onRouter(t *testing.T, name string, args ...string) {
	t.Helper()
	path := need(t, name)
	if err := inNamespace(n.router, func() error { return runHere(path, args...) }); err != nil {
		t.Fatalf("router: %v", err)
	}
}

// policies of the two hosts: ours is the client behind the box, the server, or both.
var boxPolicies = []struct{ a, b string }{
	{opportunistic, opportunistic},
	{require, opportunistic},
	{opportunistic, require},
	{require, require},
}

// everyPolicy runs the test under each of them, on a captured network with daemons.
func everyPolicy(t *testing.T, test func(t *testing.T, n *network, a, b *daemon, policyA, policyB string)) {
	t.Helper()
	for _, p := range boxPolicies {
		t.Run(fmt.Sprintf("client %s, server %s", p.a, p.b), func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t, networkOptions{capture: true})
			a, b := n.daemonsUnder(t, p.a, p.b, "")
			test(t, n, a, b, p.a, p.b)
		})
	}
}

// daemonsUnder starts one on a and one on b, with that in both [crypto] sections.
func (n *network) daemonsUnder(t *testing.T, policyA, policyB, crypto string) (a, b *daemon) {
	t.Helper()
	return n.a.up(t, everything(policyA, crypto)), n.b.up(t, everything(policyB, crypto))
}

// An echoServer answers what it has read up to the end, and keeps it to be looked at.
type echoServer struct {
	wg   sync.WaitGroup
	mu   sync.Mutex
	got  [][]byte
	from []netip.AddrPort
}

// serveEcho starts one on the host. It is stopped with the test.
func (n *node) serveEcho(t *testing.T) *echoServer {
	t.Helper()
	l := n.listen(t, servicePort)
	s := &echoServer{}
	var open sync.Map
	s.wg.Go(func() {
		for {
			conn, err := l.AcceptTCP()
			if err != nil {
				return // closed
			}
			open.Store(conn, nil)
			s.wg.Go(func() {
				defer closeQuietly(conn)
				got, err := io.ReadAll(conn)
				s.mu.Lock()
				s.got, s.from = append(s.got, got), append(s.from, addrPort(conn.RemoteAddr()))
				s.mu.Unlock()
				if err == nil {
					_, _ = conn.Write(got) // the client will notice
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		open.Range(func(c, _ any) bool {
			_ = c.(*net.TCPConn).Close()
			return true
		})
		s.wg.Wait()
	})
	return s
}

// received is what each connection has brought, finished ones only.
func (s *echoServer) received() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([][]byte(nil), s.got...)
}

// clean wants nothing to have reached the service but what clients have sent.
func (s *echoServer) clean(t *testing.T, sent []byte) {
	t.Helper()
	for _, got := range s.received() {
		if !bytes.HasPrefix(sent, got) {
			t.Errorf("the service read what nobody sent: %.80q", got)
		}
	}
}

// echo sends data, ends its side, and wants the same back; errors are the connection's.
func (n *node) echo(ctx context.Context, to netip.AddrPort, data []byte) (local netip.AddrPort, err error) {
	conn, err := n.dial(ctx, to)
	if err != nil {
		return local, err
	}
	defer closeQuietly(conn)
	local = addrPort(conn.LocalAddr())
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return local, err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		if err == nil {
			err = conn.CloseWrite()
		}
		sent <- err
	}()
	got, err := io.ReadAll(conn)
	if !bytes.HasPrefix(data, got) {
		return local, fmt.Errorf("%w: %.80q", errGarbage, got)
	}
	if err == nil && len(got) < len(data) {
		err = fmt.Errorf("%w after %d bytes of %d", errShort, len(got), len(data))
	}
	return local, errors.Join(err, <-sent)
}

// What a program must never see: bytes that nobody sent, an end before the end.
var (
	errGarbage = errors.New("bytes that nobody sent")
	errShort   = errors.New("end of file")
)

// failsClearly wants an error that tells the program that nothing came about: a reset or
// a refusal, at once.
func failsClearly(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, errGarbage) || errors.Is(err, errShort) {
		t.Errorf("program: %v, want a reset or a refusal", err)
	}
}

// markerOnWire reports whether the network, finished, has carried the marker in clear.
func (n *network) markerOnWire(t *testing.T) bool {
	t.Helper()
	for _, host := range []string{"a", "b"} {
		for _, s := range segments(n.captured(t, host), servicePort) {
			if bytes.Contains(s.Payload, []byte("plain"+"text")) {
				return true
			}
		}
	}
	return false
}

// isSYN matches an active opener's SYN, isSYNACK its answer.
func isSYN(s *wirepeer.Segment) bool {
	return s.Flags&(wirepeer.SYN|wirepeer.ACK) == wirepeer.SYN
}
func isSYNACK(s *wirepeer.Segment) bool { return s.Flags.Has(wirepeer.SYN | wirepeer.ACK) }

// servicePort is where the services behind boxes listen.
const servicePort = 80

// ofService matches the connection that one side sees to a service behind a box.
func ofService(c conn) bool {
	at := c.Local
	if c.Direction == "outbound" {
		at = c.Remote
	}
	ap, err := netip.ParseAddrPort(at)
	return err == nil && ap.Port() == servicePort
}

// unbox takes all rulesets out of the router.
func (n *network) unbox(t *testing.T) {
	t.Helper()
	n.onRouter(t, "nft", "flush", "ruleset")
}
