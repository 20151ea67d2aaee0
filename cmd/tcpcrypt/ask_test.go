package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

// answer is a daemon that has one answer, and returns its socket and what it is asked.
func answer(t *testing.T, status int, reply any) (socket string, asked func() string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	requests := make(chan string, 1)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests <- r.Method + " " + r.URL.String()
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(reply)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return socket, func() string { return <-requests }
}

// TestAsking: what each command asks for and prints, and its status.
func TestAsking(t *testing.T) {
	sessions := []control.Session{{ID: 1, Peer: "192.0.2.1:80", OpenedBy: "us", Role: "A", TEP: "p256", AEAD: "aes128gcm", NextIndex: 2,
		Created: time.Now().Add(-time.Minute - time.Second/2), Expires: time.Now().Add(time.Hour + time.Minute)}}
	remembered := []control.Remembered{{Peer: "[2001:db8::1]:80", Reason: "fallback",
		Since: time.Now().Add(-time.Minute - time.Second/2), Until: time.Now().Add(9 * time.Minute)}}
	for _, tc := range []struct {
		args   string
		code   int
		reply  any
		asked  string
		status int
		out    string // a part
	}{
		{"flush", 200, control.Flushed{Sessions: 3, Remembered: 4}, "POST /v1/flush", 0, "7\n"},
		{"flush 192.0.2.1", 200, control.Flushed{}, "POST /v1/flush?peer=192.0.2.1", 0, "0\n"},
		{"flush --json", 200, control.Flushed{Sessions: 3, Remembered: 4}, "POST /v1/flush", 0, "{\n  \"sessions\": 3,\n  \"remembered\": 4\n}\n"},
		{"sessions", 200, sessions, "GET /v1/sessions", 0, "192.0.2.1:80  us         p256  aes128gcm  2     1m0s  1h0m59s\n"},
		{"sessions", 200, []control.Session{}, "GET /v1/sessions", 0, "PEER  OPENED BY  TEP  AEAD  NEXT  AGE  EXPIRES IN\n"},
		{"sessions --json", 200, []control.Session{}, "GET /v1/sessions", 0, "[]\n"},
		{"remembered", 200, remembered, "GET /v1/remembered", 0, "[2001:db8::1]:80  fallback  1m0s  8m59s\n"},
		{"remembered --json", 200, []control.Remembered{}, "GET /v1/remembered", 0, "[]\n"},
		{"rekey", 200, control.Rekeyed{Connections: 5}, "POST /v1/rekey", 0, "5\n"},
		{"rekey --json", 200, control.Rekeyed{Connections: 5}, "POST /v1/rekey", 0, "{\n  \"connections\": 5\n}\n"},
		{"rekey 9 7 9", 200, control.Rekeyed{Connections: 2}, "POST /v1/rekey?id=7&id=9", 0, "2\n"},
		{"conns --json --local 192.0.2.1:5 --remote 192.0.2.2:80", 200, control.Conn{ID: 7}, "GET /v1/conn?local=192.0.2.1%3A5&remote=192.0.2.2%3A80", 0, "[\n  {\n    \"id\": 7,"},
		{"conns --local 192.0.2.1:5 --remote 192.0.2.2:80", 404, "no such connection", "GET /v1/conn?local=192.0.2.1%3A5&remote=192.0.2.2%3A80", 1, "no such connection from 192.0.2.1:5 to 192.0.2.2:80\n  try: "},
		{"sessions", 500, "out of order", "GET /v1/sessions", 1, "out of order"},
	} {
		socket, asked := answer(t, tc.code, tc.reply)
		var out, complaint strings.Builder
		status := run(t.Context(), append(strings.Fields(tc.args), "--socket", socket), strings.NewReader(""), &out, &complaint)
		if got := asked(); got != tc.asked {
			t.Errorf("%s: asked %s, want %s", tc.args, got, tc.asked)
		}
		said, silent := out.String(), complaint.String()
		if tc.status != 0 {
			said, silent = silent, said
		}
		if status != tc.status || !strings.Contains(said, tc.out) || silent != "" {
			t.Errorf("%s: status %d, stdout %q, stderr %q; want %d, %q", tc.args, status, out.String(), complaint.String(), tc.status, tc.out)
		}
	}
}

// TestNoPermission: the remedy is the same command with more rights.
func TestNoPermission(t *testing.T) {
	var b strings.Builder
	complain(&b, failed(newRoot(), &net.OpError{Op: "dial", Err: syscall.EACCES}))
	if want := "  try: sudo tcpcrypt\n"; !strings.Contains(b.String(), want) {
		t.Errorf("%q, want %q", b.String(), want)
	}
	if err := failed(newRoot(), io.EOF); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// TestRekeyTellsOfTheMissing: the count is printed as ever, and the status says that it
// is not what was asked for.
func TestRekeyTellsOfTheMissing(t *testing.T) {
	socket, asked := answer(t, 200, control.Rekeyed{Connections: 1})
	var out, complaint strings.Builder
	status := run(t.Context(), []string{"rekey", "7", "9", "--socket", socket}, strings.NewReader(""), &out, &complaint)
	asked()
	if status != 1 || out.String() != "1\n" || !strings.Contains(complaint.String(), "1 of 2 connections have new keys") {
		t.Errorf("status %d, stdout %q, stderr %q", status, out.String(), complaint.String())
	}
}
