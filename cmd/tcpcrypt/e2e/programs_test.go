package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Real programs, unmodified, over daemons that refuse to speak in clear.

// programs is a network where everything is encrypted or fails.
func programs(t *testing.T) (*network, *daemon) {
	t.Helper()
	n := newNetwork(t, networkOptions{})
	// Servers may listen above; what programs dial is below.
	a := n.a.up(t, everything(require, everyAlgorithm))
	n.b.up(t, everything(require, everyAlgorithm))
	return n, a
}

// serve starts a server on the host and waits until something listens on the port.
func (n *node) serve(t *testing.T, port uint16, name string, args ...string) {
	t.Helper()
	var log lockedBuffer
	cmd := n.Command(t.Context(), need(t, name), args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Env = append(cmd.Env, "LC_ALL=C")
	if err := cmd.Start(); err != nil {
		t.Fatalf("host %s: %s: %v", n.Name(), name, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait() // it is killed in the end
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-done
		if t.Failed() {
			t.Logf("host %s: %s wrote:\n%s", n.Name(), name, log.String())
		}
	})
	eventually(t, name+" listens", func() error {
		select {
		case <-done:
			t.Fatalf("host %s: %s ended:\n%s", n.Name(), name, log.String())
		default:
		}
		if out := n.run(t, "ss", "-Htln", fmt.Sprintf("sport = :%d", port)); strings.TrimSpace(out) == "" {
			return errors.New("not yet")
		}
		return nil
	})
}

// A lockedBuffer may be read while a process writes to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// url puts an address into a URL, brackets and all.
func url(addr netip.Addr, port uint16, path string) string {
	return "http://" + netip.AddrPortFrom(addr, port).String() + path
}

func TestCurl(t *testing.T) {
	t.Parallel()
	n, a := programs(t)
	const size = 20_000_000
	mux := http.NewServeMux()
	mux.HandleFunc("GET /down", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.Copy(w, stream(size)) // curl will notice
	})
	mux.HandleFunc("PUT /up", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		if _, err := io.Copy(sum, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = fmt.Fprintf(w, "%x from %s", sum.Sum(nil), r.RemoteAddr) // curl will notice
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: patience}
	l := n.b.listen(t, 80)
	go func() { _ = server.Serve(l) }() // ends with Close
	t.Cleanup(func() { _ = server.Close() })

	file := filepath.Join(n.a.dir, "file")
	if err := os.WriteFile(file, streamBytes(size), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		addr := n.b.addr(f.v6)
		got := n.a.run(t, "curl", "-gsS", url(addr, 80, "/down"))
		if sum := sha256.Sum256([]byte(got)); !bytes.Equal(sum[:], streamSum(size)) {
			t.Errorf("%s: download of %d bytes arrived changed", f.name, len(got))
		}
		got = n.a.run(t, "curl", "-gsS", "-T", file, url(addr, 80, "/up"))
		if want := fmt.Sprintf("%x from ", streamSum(size)); !strings.HasPrefix(got, want) || !strings.Contains(got, n.a.addr(f.v6).String()) {
			t.Errorf("%s: upload: %q, want %q and the client's address", f.name, got, want)
		}
		out, err := n.a.try(t, "curl", "-gsS", url(addr, 81, "/"))
		if exitStatus(t, err) != 7 { // curl: couldn't connect
			t.Errorf("%s: closed port: %v, %s", f.name, err, out)
		}
	}
	for _, c := range a.conns(t) {
		if !c.Encrypted && c.BytesSent > 0 {
			t.Errorf("in clear: %v", c)
		}
	}
}

func TestNetcat(t *testing.T) {
	t.Parallel()
	n, _ := programs(t)
	// nc -N ends its side at the end of input; the other answers and ends, too.
	received := filepath.Join(n.b.dir, "received")
	n.b.serve(t, 2000, "sh", "-c", "nc -l 2000 > "+received+" < /dev/null; sleep 100")
	file := filepath.Join(n.a.dir, "file")
	if err := os.WriteFile(file, streamBytes(3_000_000), 0o644); err != nil {
		t.Fatal(err)
	}
	n.a.run(t, "sh", "-c", fmt.Sprintf("nc -N %v 2000 < %s", n.b.Addr4(), file))
	eventually(t, "the file arrives", func() error {
		got, err := os.ReadFile(received)
		if err == nil && !bytes.Equal(got, streamBytes(3_000_000)) {
			err = fmt.Errorf("%d bytes", len(got))
		}
		return err
	})
	if out, err := n.a.try(t, "nc", "-z", n.b.Addr4().String(), "2001"); exitStatus(t, err) != 1 {
		t.Errorf("nc -z to a closed port: %v, %s", err, out)
	}
}

func TestIperf3(t *testing.T) {
	t.Parallel()
	n, _ := programs(t)
	n.b.serve(t, 5201, "iperf3", "-s")
	for _, args := range [][]string{{}, {"-R"}, {"-P", "4"}, {"-6"}} {
		addr := n.b.Addr4().String()
		if len(args) > 0 && args[0] == "-6" {
			addr = n.b.Addr6().String()
		}
		var out string
		eventually(t, "iperf3's server is done with the test before", func() (err error) {
			out, err = n.a.try(t, "iperf3", append([]string{"-c", addr, "-n", "50M"}, args...)...)
			if err != nil && !strings.Contains(out, "server is busy") {
				t.Fatalf("iperf3 %v: %v\n%s", args, err, out)
			}
			return err
		})
		if !strings.Contains(out, "iperf Done.") {
			t.Errorf("iperf3 %v:\n%s", args, out)
		}
	}
}

func TestSSH(t *testing.T) {
	t.Parallel()
	n, _ := programs(t)
	key, hostKey := filepath.Join(n.a.dir, "key"), filepath.Join(n.b.dir, "hostkey")
	for _, k := range []string{key, hostKey} {
		n.a.run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", k)
	}
	authorized, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(n.b.dir, "authorized_keys")
	if err := os.WriteFile(keys, authorized, 0o600); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(n.b.dir, "sshd_config")
	const port = "2222"
	if err := os.WriteFile(config, fmt.Appendf(nil, `Port `+port+`
HostKey %s
AuthorizedKeysFile %s
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
Subsystem sftp internal-sftp
`, hostKey, keys), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = n.b.Do(func() error { return os.MkdirAll("/run/sshd", 0o755) }) // sshd says so if that fails
	// In a user namespace sshd may not be root: it drops groups there, which is forbidden.
	login, server := "root", []string{need(t, "sshd"), "-D", "-e", "-f", config}
	if inUserNamespace(t) {
		login, server = somebody, append(notRoot(t, n.b.dir), server...)
		// Who can read there that the account has no password is told that it is locked.
		if err := n.b.Do(func() error { return unix.Mount(os.DevNull, "/etc/shadow", "", unix.MS_BIND, "") }); err != nil {
			t.Fatalf("hide /etc/shadow: %v", err)
		}
	}
	n.b.serve(t, 2222, server[0], server[1:]...)
	options := []string{"-o", "Port=" + port, "-i", key, "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=" + os.DevNull, "-o", "LogLevel=ERROR", "-o", "BatchMode=yes"}
	for _, f := range families {
		out := n.a.run(t, "ssh", append(options, login+"@"+n.b.addr(f.v6).String(), "echo $SSH_CLIENT; head -c 5000000 /dev/zero | sha256sum")...)
		if !strings.HasPrefix(out, n.a.addr(f.v6).String()+" ") {
			t.Errorf("%s: sshd saw %q, want the client's own address", f.name, out)
		}
		if want := fmt.Sprintf("%x", sha256.Sum256(make([]byte, 5_000_000))); !strings.Contains(out, want) {
			t.Errorf("%s: %q", f.name, out)
		}
	}
	file := filepath.Join(n.a.dir, "file")
	if err := os.WriteFile(file, streamBytes(5_000_000), 0o600); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(n.b.dir, "file")
	n.a.run(t, "scp", append(options, file, login+"@"+n.b.Addr4().String()+":"+copied)...)
	if got, err := os.ReadFile(copied); err != nil || !bytes.Equal(got, streamBytes(5_000_000)) {
		t.Errorf("scp: %d bytes, %v", len(got), err)
	}
}

func TestRedis(t *testing.T) {
	t.Parallel()
	n, _ := programs(t)
	n.b.serve(t, 6379, "redis-server", "--port", "6379", "--bind", "* -::*", "--protected-mode", "no", "--save", "", "--dir", n.b.dir)
	for _, f := range families {
		cli := []string{"-h", n.b.addr(f.v6).String()}
		if out := n.a.run(t, "redis-cli", append(cli, "set", "key", "value")...); strings.TrimSpace(out) != "OK" {
			t.Errorf("%s: set: %q", f.name, out)
		}
		if out := n.a.run(t, "redis-cli", append(cli, "get", "key")...); strings.TrimSpace(out) != "value" {
			t.Errorf("%s: get: %q", f.name, out)
		}
	}
	out := n.a.run(t, "redis-benchmark", "-h", n.b.Addr4().String(), "-t", "set,get", "-n", "2000", "-c", "20", "-d", "3000", "-q")
	if strings.Count(out, "requests per second") < 2 {
		t.Errorf("redis-benchmark:\n%s", out)
	}
}

func TestPostgreSQL(t *testing.T) {
	t.Parallel()
	n, _ := programs(t)
	data := filepath.Join(n.b.dir, "data")
	// PostgreSQL refuses to be root; it may be anybody else.
	as := notRoot(t, n.b.dir)
	for dir := n.b.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.b.run(t, as[0], append(as[1:], need(t, "initdb"), "-D", data, "-A", "trust", "-U", "test", "-N", "--no-instructions")...)
	if err := appendTo(filepath.Join(data, "pg_hba.conf"), "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n"); err != nil {
		t.Fatal(err)
	}
	n.b.serve(t, 5432, as[0], append(as[1:], need(t, "postgres"), "-D", data, "-p", "5432", "-c", "listen_addresses=*",
		"-c", "unix_socket_directories="+n.b.dir, "-c", "fsync=off")...)
	for _, f := range families {
		psql := func(query string) string {
			return strings.TrimSpace(n.a.run(t, "psql", "-X", "-h", n.b.addr(f.v6).String(), "-U", "test", "-d", "postgres", "-Atc", query))
		}
		if got := psql("select inet_client_addr()"); got != n.a.addr(f.v6).String() {
			t.Errorf("%s: the server sees %q, want %v", f.name, got, n.a.addr(f.v6))
		}
		if got := psql("select count(*), sum(length(repeat(md5(i::text), 100))) from generate_series(1, 2000) i"); got != "2000|6400000" {
			t.Errorf("%s: %q", f.name, got)
		}
		if got := psql("select repeat('x', 3000000)"); got != strings.Repeat("x", 3_000_000) {
			t.Errorf("%s: a large answer has %d bytes", f.name, len(got))
		}
	}
}

func appendTo(file, text string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// somebody is a user with a shell that PostgreSQL's package brings.
const somebody = "postgres"

// notRoot is the beginning of a command line that makes the rest run as somebody, who
// gets dir.
func notRoot(t *testing.T, dir string) []string {
	t.Helper()
	u, err := user.Lookup(somebody)
	if err != nil {
		t.Fatalf("%v: the package postgresql is not installed", err)
	}
	if !inUserNamespace(t) {
		if out, err := exec.Command("chown", "-R", u.Uid+":"+u.Gid, dir).CombinedOutput(); err != nil {
			t.Fatalf("chown: %v\n%s", err, out)
		}
		return []string{need(t, "setpriv"), "--reuid=" + u.Uid, "--regid=" + u.Gid, "--clear-groups"}
	}
	// There is one user only. In a namespace below that one may have another number.
	return []string{need(t, "unshare"), "--user", "--map-user=" + u.Uid, "--map-group=" + u.Gid}
}

// inUserNamespace reports whether this root is somebody else outside.
func inUserNamespace(t *testing.T) bool {
	t.Helper()
	m, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(m))
	return len(fields) != 3 || fields[2] != "4294967295"
}
