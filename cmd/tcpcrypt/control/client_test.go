package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// serve answers every request with handler on a socket, and returns its path.
func serve(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handler}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return path
}

func TestConns(t *testing.T) {
	var asked string
	path := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.String()
		fmt.Fprint(w, `[{"id":7,"direction":"inbound","encrypted":true,"tep":"p256","reason":null,"of a later version":1}]`)
	})
	c := Client{Socket: path}
	conns, err := c.Conns(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	if asked != PathConns+"?closed=true" {
		t.Errorf("asked for %s", asked)
	}
	if len(conns) != 1 || conns[0].ID != 7 || !conns[0].Encrypted || *conns[0].TEP != "p256" || conns[0].Reason != nil {
		t.Errorf("conns %+v", conns)
	}
}

func TestDial(t *testing.T) {
	path := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "[]") })
	c := Client{Socket: "/nowhere", Dial: func(context.Context) (net.Conn, error) { return net.Dial("unix", path) }}
	if conns, err := c.Conns(t.Context(), false); err != nil || conns == nil || len(conns) != 0 {
		t.Errorf("conns %v, %v; want none, not nil", conns, err)
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	for _, path := range []string{stale, filepath.Join(dir, "absent")} {
		if _, err := (&Client{Socket: path}).Conns(t.Context(), false); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	refuses := serve(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not so", http.StatusBadRequest) })
	if _, err := (&Client{Socket: refuses}).Conns(t.Context(), false); err == nil || !strings.Contains(err.Error(), "not so") {
		t.Errorf("a refusal: %v", err)
	}
	babbles := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	if _, err := (&Client{Socket: babbles}).Conns(t.Context(), false); err == nil {
		t.Error("no JSON, and no error")
	}
}

func TestDefaultSocket(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/1")
	if got := DefaultSocket(); got != "/run/tcpcrypt.sock" && got != "/run/user/1/tcpcrypt.sock" {
		t.Errorf("socket %s", got)
	}
	t.Setenv("XDG_RUNTIME_DIR", "")
	if got := DefaultSocket(); got != "/run/tcpcrypt.sock" {
		t.Errorf("socket %s", got)
	}
}
