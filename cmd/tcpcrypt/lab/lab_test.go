package lab

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"
)

// serveHTTP answers every request on port 80 of a host with text, until the test ends.
func serveHTTP(t *testing.T, h *Host, text string) {
	t.Helper()
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = net.Listen("tcp", ":80")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }),
		ReadHeaderTimeout: time.Minute,
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

func TestHostsReachEachOtherByName(t *testing.T) {
	l := newTestLab(t, Options{Hosts: []HostOptions{{Name: "a", Plain: true}, {Name: "web-1", Plain: true}, {Name: "c", Plain: true}}})
	serveHTTP(t, l.Host("web-1"), "from web-1")
	serveHTTP(t, l.Host("c"), "from c")
	for _, tc := range []struct{ url, want string }{
		{"http://web-1/", "from web-1"},
		{"http://web-1.ip4/", "from web-1"},
		{"http://web-1.ip6/", "from web-1"},
		{"http://c.ip6/", "from c"},
		{"http://10.83.3.2/", "from c"},
		{"http://[fd83:0:0:3::2]/", "from c"},
	} {
		out, err := l.Host("a").Command(t.Context(), "curl", "-sS", "--fail", "--max-time", "10", tc.url).CombinedOutput()
		if err != nil || string(out) != tc.want {
			t.Errorf("curl %s: %v, %q, want %q", tc.url, err, out, tc.want)
		}
	}
}

func TestNobodyElseIsReached(t *testing.T) {
	l := newTestLab(t, twoPlain())
	for _, tc := range []struct{ url, want string }{
		{"http://8.8.8.8/", "curl: (7)"},             // no route, at once
		{"http://b:81/", "curl: (7)"},                // refused
		{"http://no-such-host/", "curl: (6)"},        // not looked up anywhere else
		{"http://www.example.org/", "curl: (6)"},     //
		{"http://[2001:db8::1]:80/", "curl: (7)"},    //
		{"http://b.ip6:81/nothing", "curl: (7)"},     //
		{"http://localhost:22/nothing", "curl: (7)"}, // not the machine's own services
	} {
		out, err := l.Host("a").Command(t.Context(), "curl", "-sS", "--max-time", "10", tc.url).CombinedOutput()
		if err == nil || !strings.Contains(string(out), tc.want) {
			t.Errorf("curl %s: %v, %q, want %q", tc.url, err, out, tc.want)
		}
	}
}

func TestHostHasItsOwnRun(t *testing.T) {
	l := newTestLab(t, twoPlain())
	for _, name := range []string{"a", "b"} {
		err := l.Host(name).Do(func() error { return os.WriteFile("/run/mine", []byte(name), 0o600) })
		if err != nil {
			t.Fatal(err)
		}
	}
	out, err := l.Host("a").Command(t.Context(), "sh", "-c", "cat /run/mine; hostname; ls /sys/class/net").Output()
	if got, want := string(out), "aa\neth0\nlo\n"; err != nil || got != want {
		t.Errorf("%v, %q, want %q", err, got, want)
	}
	if _, err := os.Stat("/run/mine"); err == nil {
		t.Error("a host's /run is the process's too")
	}
}

func TestLabsSideBySide(t *testing.T) {
	one, two := newTestLab(t, twoPlain()), newTestLab(t, twoPlain())
	serveHTTP(t, one.Host("b"), "one")
	serveHTTP(t, two.Host("b"), "two")
	for l, want := range map[*Lab]string{one: "one", two: "two"} {
		if out, err := l.Host("a").Command(t.Context(), "curl", "-sS", "http://b/").CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("%v, %q, want %q", err, out, want)
		}
	}
}

func TestCloseKillsWhatRuns(t *testing.T) {
	l, err := New(t.Context(), twoPlain())
	if err != nil {
		t.Fatal(err)
	}
	cmd := l.Host("a").Command(context.Background(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.String() != "signal: killed" {
		t.Errorf("sleep: %v, want it killed", err)
	}
	if err := l.Host("a").Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Do after Close: %v, want os.ErrClosed", err)
	}
}

func TestCommandEndsWithItsContext(t *testing.T) {
	l := newTestLab(t, twoPlain())
	ctx, cancel := context.WithCancel(t.Context())
	cmd := l.Host("a").Command(ctx, "sh", "-c", "echo up; sleep 1000; echo over")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	readTo(t, out, "up")
	cancel()
	if err := cmd.Wait(); err == nil {
		t.Error("the command ended well, want it killed")
	}
}

func TestOptionsThatCannotBe(t *testing.T) {
	for _, hosts := range [][]HostOptions{
		nil,
		{{Name: "a", Plain: true}, {Name: "a", Plain: true}},
		{{Name: "A", Plain: true}},
		{{Name: "-a", Plain: true}},
		{{Name: "localhost", Plain: true}},
		{{Name: "thirteen-long", Plain: true}},
		make([]HostOptions, MaxHosts+1),
	} {
		if l, err := New(t.Context(), Options{Hosts: hosts}); err == nil {
			t.Errorf("New with hosts %v worked", hosts)
			_ = l.Close()
		}
	}
}

func TestCaptureHoldsEveryPacket(t *testing.T) {
	o := twoPlain()
	o.Pcap = filepath.Join(t.TempDir(), "made", "for", "it")
	l := newTestLab(t, o)
	marker := "what a capture is searched for"
	serveHTTP(t, l.Host("b"), strings.Repeat("x", 1<<20)+marker)
	out, err := l.Host("a").Command(t.Context(), "curl", "-sS", "http://b/").Output()
	if err != nil || len(out) != 1<<20+len(marker) {
		t.Fatalf("%v, %d bytes", err, len(out))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	captures := l.Captures()
	if len(captures) != 2 {
		t.Fatalf("%d captures, want one for each host", len(captures))
	}
	for _, c := range captures {
		if c.File != filepath.Join(o.Pcap, c.Host+".pcapng") || c.Lost != 0 {
			t.Errorf("%+v", c)
		}
		packets, payload := readCapture(t, c.File)
		if packets != c.Packets {
			t.Errorf("%s has %d packets, want %d", c.File, packets, c.Packets)
		}
		if !bytes.Contains(payload, []byte(marker)) || len(payload) < 1<<20 {
			t.Errorf("%s: the last bytes that passed are not in it", c.File)
		}
	}
}

// readCapture returns the number of packets in a file, and all of them.
func readCapture(t *testing.T, file string) (n uint64, all []byte) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, _, err := r.ReadPacketData()
		if err != nil {
			return n, all
		}
		n++
		all = append(all, data...)
	}
}
