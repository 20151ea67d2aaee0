package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The tests of this file run the real program.

// binVar may name a program that has been built already.
const binVar = "TCPCRYPT_BIN"

// built is a directory that everybody may look into, with the program, unless there is
// one already, and this test binary in it.
var built struct {
	sync.Once
	dir, path string
	err       error
}

// tcpcrypt is the program, built once.
func tcpcrypt(t *testing.T) string {
	t.Helper()
	built.Do(func() { built.err = build() })
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

func build() (err error) {
	if built.dir, err = os.MkdirTemp("", "tcpcrypt-lab-test-"); err != nil {
		return err
	}
	if err := os.Chmod(built.dir, 0o755); err != nil {
		return err
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(built.dir, "helper"), self, 0o755); err != nil {
		return err
	}
	if built.path = os.Getenv(binVar); built.path != "" {
		return nil
	}
	built.path = filepath.Join(built.dir, "tcpcrypt")
	out, err := exec.Command("go", "build", "-o", built.path, "github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt").CombinedOutput()
	if err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

func removeProgram() {
	if built.dir != "" {
		_ = os.RemoveAll(built.dir) // a leftover in the temporary directory is no failure
	}
}

// typed is a command line of tcpcrypt.
func typed(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	return exec.CommandContext(t.Context(), tcpcrypt(t), args...)
}

// webServer is the test binary as web server.
func webServer(t *testing.T) string {
	t.Helper()
	tcpcrypt(t)
	return "exec env " + programVar + "=1 " + filepath.Join(built.dir, "helper") + " web"
}

// lastReport is the report of a lab with --json.
func lastReport(t *testing.T, stderr string) *Report {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
	r := &Report{}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), r); err != nil {
		t.Fatalf("%v in %s", err, stderr)
	}
	return r
}

// checkEncrypted holds the report against what a lab with b and, plain, c should say.
func checkEncrypted(t *testing.T, r *Report) {
	t.Helper()
	seen := make(map[string]int)
	for _, c := range r.Connections {
		seen[c.Server]++
		switch o := c.Opened; {
		case o == nil || c.Client != "a":
			t.Errorf("a connection that a did not open: %+v", c)
		case c.Server == "b":
			if !o.Encrypted || c.Taken == nil || !c.Taken.Encrypted || c.SameID == nil || !*c.SameID || o.SessionID == nil || len(*o.SessionID) != 66 {
				t.Errorf("a and b: %+v, %+v", o, c.Taken)
			} else if *o.Role == *c.Taken.Role || *o.TEP != *c.Taken.TEP || *o.AEAD != *c.Taken.AEAD {
				t.Errorf("a and b do not fit: %+v, %+v", o, c.Taken)
			}
		case c.Server == "c":
			if o.Encrypted || o.Reason == nil || *o.Reason != "no-eno" || c.Taken != nil || c.SameID != nil {
				t.Errorf("a and c: %+v, %+v", o, c.Taken)
			}
		}
	}
	if seen["b"] != 2 || seen["c"] != 2 {
		t.Errorf("connections by server: %v, want two with each", seen)
	}
}

func TestDaemonsEncryptWhereBothRun(t *testing.T) {
	server, wire := webServer(t), t.TempDir()
	cmd := typed(t, "lab", "--host", "a", "--host", "b", "--host", "c=plain", "--serve", "b="+server, "--serve", "c="+server,
		"--pcap", wire, "--json", "--",
		"curl", "-sS", "--max-time", "10", "http://b.ip4/", "http://b.ip6/", "http://c.ip4/", "http://c.ip6/",
		"--next", "-sS", "http://c.ip4:81/") // refused
	status, stdout, stderr := finished(t, cmd)
	if status != 7 || stdout != strings.Repeat("hello\n", 4) {
		t.Fatalf("status %d, stdout %q, stderr %s", status, stdout, stderr)
	}
	r := lastReport(t, stderr)
	refused := 0
	for i, c := range r.Connections {
		if c.Opened != nil && strings.HasSuffix(c.Opened.Remote, ":81") {
			refused++
			r.Connections = append(r.Connections[:i], r.Connections[i+1:]...)
			break
		}
	}
	if refused != 1 {
		t.Errorf("%d refused connections, want one: %+v", refused, r.Connections)
	}
	checkEncrypted(t, r)
	for _, c := range r.Captures {
		_, packets := readCapture(t, c.File)
		text := bytes.Contains(packets, []byte("hello\n")) && bytes.Contains(packets, []byte("HTTP/1.1"))
		if plain := c.Host != "b"; text != plain || c.Lost != 0 {
			t.Errorf("plaintext in the capture of %s: %t, want %t; %d lost", c.Host, text, plain, c.Lost)
		}
	}
}

func TestDaemonsOfAnOrdinaryUser(t *testing.T) {
	server := webServer(t)
	cmd := typed(t, "lab", "--host", "a", "--host", "b", "--host", "c=plain", "--serve", "b="+server, "--serve", "c="+server,
		"--json", "--", "curl", "-sS", "--max-time", "10", "http://b.ip4/", "http://b.ip6/", "http://c.ip4/", "http://c.ip6/")
	script := ":"
	prefix := nobody(t)
	if prefix != nil {
		// As most distributions have it: everybody may open the device.
		script = "mount -t tmpfs tmpfs /dev/net; mknod -m 666 /dev/net/tun c 10 200"
	}
	wrap(t, cmd, script, prefix...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	status, stdout, stderr := finished(t, cmd)
	if status != 0 || stdout != strings.Repeat("hello\n", 4) {
		t.Fatalf("status %d, stdout %q, stderr %s", status, stdout, stderr)
	}
	checkEncrypted(t, lastReport(t, stderr))
}

func TestConnsOnAHost(t *testing.T) {
	cmd := typed(t, "lab", "--host=b=plain", "--serve", "b="+webServer(t), "--",
		"sh", "-ec", "hostname; curl -sS http://b.ip4/; tcpcrypt conns --json --closed; tcpcrypt check /run/tcpcrypt.toml")
	status, stdout, stderr := finished(t, cmd)
	if status != 0 || !strings.HasPrefix(stdout, "a\nhello\n[") || !strings.Contains(stdout, `"no-eno"`) {
		t.Errorf("status %d, stdout %s, stderr %s", status, stdout, stderr)
	}
	if want := "tcpcrypt lab: 1 connection\n"; !strings.HasPrefix(stderr, want) {
		t.Errorf("stderr %s, want it to begin with %s", stderr, want)
	}
}

func TestKilledLabWithDaemonsLeavesNothing(t *testing.T) {
	cmd := typed(t, "lab", "--", "sh", "-c", "echo up; sleep 1003")
	killAndLook(t, cmd, "tcpcrypt up", "sleep 1003")
}

func TestWrongUsage(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{}, "no COMMAND"},
		{[]string{"--host", "a"}, "no COMMAND"},
		{[]string{"--host", "B", "--", "true"}, "lower-case"},
		{[]string{"--host", "a", "--host", "a", "--", "true"}, "already"},
		{[]string{"--host", "a=fancy", "--", "true"}, "only be plain"},
		{[]string{"--serve", "b", "--", "true"}, "NAME=COMMAND"},
		{[]string{"--serve", "b= ", "--", "true"}, "NAME=COMMAND"},
		{[]string{"--serve", "d=nc -l 80", "--", "true"}, `no host "d"`},
		{[]string{"--such", "--", "true"}, "unknown flag"},
		{[]string{"--pcap"}, "needs an argument"},
	} {
		status, stdout, stderr := finished(t, typed(t, append([]string{"lab"}, tc.args...)...))
		if status != 2 || stdout != "" || !strings.HasPrefix(stderr, "tcpcrypt: ") || !strings.Contains(stderr, tc.want) {
			t.Errorf("lab %q: status %d, stdout %q, stderr %q; want 2 and %q", tc.args, status, stdout, stderr, tc.want)
		}
	}
}

func TestHostsThatAreNotNamed(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, "a b"},
		{[]string{"--host=b=plain"}, "a b(plain)"},
		{[]string{"--host=a=plain"}, "a(plain) b"},
		{[]string{"--host=web"}, "a web"},
		{[]string{"--host=x", "--host=y=plain", "--host=z"}, "x y(plain) z"},
	} {
		status, _, stderr := finished(t, typed(t, append(append([]string{"lab", "--json"}, tc.args...), "--", "true")...))
		if status != 0 {
			t.Errorf("lab %q: status %d, stderr %s", tc.args, status, stderr)
			continue
		}
		var got []string
		for _, h := range lastReport(t, stderr).Hosts {
			name := h.Name
			if h.Plain {
				name += "(plain)"
			}
			got = append(got, name)
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("lab %q: hosts %q, want %s", tc.args, got, tc.want)
		}
	}
}
