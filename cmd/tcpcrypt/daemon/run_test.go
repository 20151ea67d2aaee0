package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
	"github.com/tcpcrypt/tcpcrypt/routing"
	"github.com/tcpcrypt/tcpcrypt/tun"
)

const both = `
[[outbound]]
to = ["10.1.1.0/24", "fd01::/64"]
ports = ["80", "81"]

[[inbound]]
ports = ["80"]
policy = "require"
`

func TestRunStandsUntilToldAndLeavesNothing(t *testing.T) {
	if !inNetns(t) {
		return
	}
	uplink(t)
	before := snapshot(t)
	r := up(t, both)
	log := r.log.String()
	if n := strings.Count(log, "ready"); n != 1 || !strings.HasSuffix(log, "\n") || !strings.Contains(lastLine(log), "msg=ready") {
		t.Errorf("%d times ready, want it in the last line:\n%s", n, log)
	}
	if conns := r.conns(true); len(conns) != 0 {
		t.Errorf("connections %v before there were any", conns)
	}
	if snapshot(t) == before {
		t.Error("the daemon changes nothing")
	}
	if err := r.stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
	sameAs(t, before)
	if _, err := os.Lstat(r.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	return lines[len(lines)-1]
}

// TestStopDuringStartLeavesNothing stops it at each step of the start.
func TestStopDuringStartLeavesNothing(t *testing.T) {
	if !inNetns(t) {
		return
	}
	uplink(t)
	before := snapshot(t)
	for at := 1; ; at += 3 {
		var r *run
		made := make(chan struct{})
		r = launch(t, both, func(lines int) {
			if lines == at {
				<-made
				r.cancel()
			}
		})
		close(made)
		select {
		case <-r.log.ready:
			if at < 10 {
				t.Errorf("ready after %d lines of log; where are the steps?", at)
			}
			_ = r.stop()
			return
		case <-r.ended:
		}
		if r.err != nil || strings.Contains(r.log.String(), "ready") {
			t.Errorf("stopped at line %d: %v, log\n%s", at, r.err, r.log)
		}
		sameAs(t, before)
		if _, err := os.Lstat(r.socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("stopped at line %d: the socket is still there: %v", at, err)
		}
		if t.Failed() {
			return
		}
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	if !inNetns(t) {
		return
	}
	uplink(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		doc, socket   string
		prepare, undo string // for ip
		part          string // of the error
	}{
		"something else at the socket's path": {both, file, "", "", "something else is there"},
		"no directory for the socket":         {both, filepath.Join(dir, "no", "s"), "", "", "no such file or directory"},
		"a path too long for a socket":        {both, "/" + strings.Repeat("x", 108), "", "", "too long"},
		"a device of that name":               {both, "", "link add tcpcrypt0 type veth peer name other", "link del other", "tcpcrypt0"},
		"a persistent device of that name":    {both, "", "tuntap add tcpcrypt0 mode tun", "link del tcpcrypt0", "tcpcrypt0"},
		"the link's address is in use":        {both, "", "addr add 198.18.0.1/30 dev lo", "addr del 198.18.0.1/30 dev lo", "198.18.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.prepare != "" {
				ip(t, tc.prepare)
				defer ip(t, tc.undo)
			}
			before := snapshot(t)
			r := &record{ready: make(chan struct{})}
			if tc.socket == "" {
				tc.socket = filepath.Join(dir, "s")
			}
			err := Run(t.Context(), options(t, tc.doc, tc.socket, r))
			var hint interface{ Hint() string }
			if err == nil || !strings.Contains(err.Error(), tc.part) || !errors.As(err, &hint) || hint.Hint() == "" {
				t.Errorf("error %v, want one with %q and a hint", err, tc.part)
			}
			if strings.Contains(r.String()+fmt.Sprint(err), "ready") {
				t.Errorf("says ready: %v\n%s", err, r)
			}
			sameAs(t, before)
			if data, err := os.ReadFile(file); string(data) != "precious" {
				t.Errorf("the file is now %q, %v", data, err)
			}
			if _, err := os.Lstat(filepath.Join(dir, "s")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket is there: %v", err)
			}
		})
	}
}

func TestSecondInstanceIsRefused(t *testing.T) {
	if !inNetns(t) {
		return
	}
	uplink(t)
	first := up(t, both)
	standing := snapshot(t)
	for name, doc := range map[string]string{"same": both, "other device": both + "\n[interface]\nname = 'tc1'\nhost4 = '198.18.9.1'\nstack4 = '198.18.9.2'\n"} {
		for _, socket := range []string{first.socket, first.socket + "2"} {
			err := Run(t.Context(), options(t, doc, socket, &record{ready: make(chan struct{})}))
			if !errors.Is(err, routing.ErrRunning) {
				t.Errorf("%s, socket %s: %v, want ErrRunning", name, socket, err)
			}
		}
	}
	sameAs(t, standing)
	first.conns(false)
	if err := first.stop(); err != nil {
		t.Error(err)
	}
}

func TestDeviceTakenAwayIsAnErrorAndLeavesNothing(t *testing.T) {
	if !inNetns(t) {
		return
	}
	uplink(t)
	before := snapshot(t)
	for args, want := range map[string]error{"link del tcpcrypt0": tun.ErrDeleted, "link set tcpcrypt0 down": tun.ErrDown} {
		r := up(t, both)
		ip(t, args)
		if err := r.end(); !errors.Is(err, want) {
			t.Errorf("ip %s: %v, want %v", args, err, want)
		}
		sameAs(t, before)
	}
}

func TestWithoutIPv6ItsHalfIsLeftOut(t *testing.T) {
	if !inNetns(t) {
		return
	}
	command(t, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
	before := snapshot(t)
	err := Run(t.Context(), options(t, both, filepath.Join(t.TempDir(), "s"), &record{ready: make(chan struct{})}))
	if err == nil || !strings.Contains(err.Error(), "fd01::/64 (outbound[0].to)") {
		t.Errorf("an IPv6 prefix: %v", err)
	}
	sameAs(t, before)
	r := up(t, "[[outbound]]\nto = ['10.1.1.0/24']\n")
	if n := strings.Count(r.log.String(), "IPv6 is off"); n != 1 {
		t.Errorf("%d lines say that IPv6 is off, want one", n)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	sameAs(t, before)
}

// TestConnectionsAreShownAndReset is one connection of each family to a plain peer, its
// JSON, and its end with the daemon's.
func TestConnectionsAreShownAndReset(t *testing.T) {
	if !inNetns(t) {
		return
	}
	there := uplink(t)
	serve(t, there, "80")
	r := up(t, both)
	for i, to := range []string{"10.1.1.2:80", "[fd01::2]:80"} {
		c, err := net.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := io.WriteString(c, "twelve bytes"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 12)); err != nil {
			t.Fatal(err)
		}
		// What was sent is counted once TCP has it: the echo may be quicker.
		var got []control.Conn
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if got = r.conns(false); len(got) == i+1 && got[i].BytesSent > 0 {
				break
			}
		}
		if len(got) != i+1 {
			t.Fatalf("connections %+v", got)
		}
		reason := "no-eno"
		want := control.Conn{ID: got[i].ID, Direction: "outbound", Local: c.LocalAddr().String(), Remote: to, State: "open",
			Reason: &reason, BytesSent: 12, BytesReceived: 12}
		if g, w := asJSON(t, got[i]), asJSON(t, want); g != w {
			t.Errorf("%s\nwant %s", g, w)
		}
		if err := r.stopIfLast(i == 1); err != nil {
			t.Error(err)
		}
		if i == 1 {
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("after a stop: %v, want a reset", err)
			}
		}
	}
}

func (r *run) stopIfLast(last bool) error {
	if last {
		return r.stop()
	}
	return nil
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestJSONOfAConnection: the fields, their names, order and nulls are what programs
// rely on. Fields are only ever added.
func TestJSONOfAConnection(t *testing.T) {
	if !inNetns(t) {
		return
	}
	there := uplink(t)
	serve(t, there, "80")
	r := up(t, both)
	c, err := net.Dial("tcp", "10.1.1.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte("x")); err != nil { // what has come back is of an open connection
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	hc := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.socket)
	}}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://any"+control.PathConns, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	golden := `[{"id":N,"direction":"outbound","local":"10.1.1.1:N","remote":"10.1.1.2:80","state":"open","encrypted":false,` +
		`"reason":"no-eno","role":null,"tep":null,"aead":null,"session_id":null,"resumed":false,"bytes_sent":1,"bytes_received":1,` +
		`"generation_sent":0,"generation_received":0,"peer_application_aware":false}]`
	got := regexp.MustCompile(`"id":\d+`).ReplaceAllString(strings.TrimSpace(string(body)), `"id":N`)
	got = regexp.MustCompile(`10\.1\.1\.1:\d+`).ReplaceAllString(got, "10.1.1.1:N")
	if got != golden || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s: %s\nwant %s", resp.Header.Get("Content-Type"), got, golden)
	}
}

// TestStartAfterKill starts where an earlier daemon was killed: with its rules and its
// socket still there.
func TestStartAfterKill(t *testing.T) {
	const role, socketOf = "TCPCRYPT_TEST_VICTIM", "TCPCRYPT_TEST_SOCKET"
	if os.Getenv(role) != "" { // the daemon that will be killed
		r := &record{ready: make(chan struct{})}
		go func() {
			<-r.ready
			_, _ = os.Stdout.WriteString("stands\n")
		}()
		t.Fatal(Run(t.Context(), options(t, both, os.Getenv(socketOf), r)))
	}
	if !inNetns(t) {
		return
	}
	uplink(t)
	before := snapshot(t)
	socket := filepath.Join(t.TempDir(), "s")
	victim := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$")
	victim.Env = append(os.Environ(), role+"=1", socketOf+"="+socket)
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "stands\n" {
		t.Fatalf("the first daemon said %q, %v", line, err)
	}
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = victim.Wait()
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("the killed one's socket: %v; the test tests nothing", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := &record{ready: make(chan struct{})}
	ended := make(chan error, 1)
	o := options(t, both, socket, r)
	go func() { ended <- Run(ctx, o) }()
	select {
	case <-r.ready:
	case err := <-ended:
		t.Fatalf("does not start again: %v\n%s", err, r)
	}
	if _, err := (&control.Client{Socket: socket}).Conns(t.Context(), false); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	sameAs(t, before)
}
