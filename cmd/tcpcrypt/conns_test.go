package main

import (
	"strings"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

func text(s string) *string { return &s }

// TestConnsTable: a line for each connection, with what a reader looks for.
func TestConnsTable(t *testing.T) {
	var out strings.Builder
	err := writeConns(&out, []control.Conn{
		{ID: 1, Direction: "outbound", Local: "192.0.2.1:40000", Remote: "[2001:db8::1]:80", State: "open", Encrypted: true,
			Role: text("A"), TEP: text("curve25519"), AEAD: text("aes128gcm"), SessionID: text(strings.Repeat("23", 33)),
			BytesSent: 7, BytesReceived: 8},
		{ID: 2, Direction: "inbound", Local: "192.0.2.1:80", Remote: "192.0.2.9:5", State: "closed", Reason: text("no-eno")},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"ID DIRECTION LOCAL REMOTE STATE ENCRYPTED ROLE SESSION ID SENT RECEIVED",
		"1 outbound 192.0.2.1:40000 [2001:db8::1]:80 open yes: curve25519 aes128gcm A 232323232323232323… 7 8",
		"2 inbound 192.0.2.1:80 192.0.2.9:5 closed no: no-eno - - 0 0",
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	for i := range lines {
		lines[i] = strings.Join(strings.Fields(lines[i]), " ")
	}
	if got := strings.Join(lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("table:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
}
