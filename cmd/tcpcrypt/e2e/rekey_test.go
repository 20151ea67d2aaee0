package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// New keys in mid-connection: RFC 8548, section 3.8.

// rekey asks the daemon for new keys, and returns what the command printed.
func (d *daemon) rekey(t *testing.T, args ...string) string {
	t.Helper()
	return strings.TrimSpace(d.node.run(t, program, append([]string{"rekey", "--socket", d.node.socket()}, args...)...))
}

// generations waits until the connection at that client's port has come that far.
func (d *daemon) generations(t *testing.T, match func(c conn) bool, sent, received uint64) {
	t.Helper()
	d.conn(t, fmt.Sprintf("a connection with generations %d and %d", sent, received), func(c conn) bool {
		return match(c) && c.GenerationSent == sent && c.GenerationReceived == received
	})
}

func TestRekeyCommandGivesBothDirectionsNewKeys(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	n.servicePorts(t)
	a, b := n.daemonsUnder(t, opportunistic, opportunistic, everyAlgorithm)
	client, service := n.pairOf(t, false)
	talk := func() {
		t.Helper()
		mustWrite(t, "client", client, "question")
		mustRead(t, "service", service, "question")
		mustWrite(t, "service", service, "answer")
		mustRead(t, "client", client, "answer")
	}
	any := func(conn) bool { return true }
	talk()
	if out := a.rekey(t); out != "1" {
		t.Errorf("tcpcrypt rekey printed %q, want 1", out)
	}
	for _, d := range []*daemon{a, b} { // at once, with nothing to say
		d.generations(t, any, 1, 1)
	}
	talk()
	id := fmt.Sprint(b.conn(t, "the connection", any).ID)
	if out := b.rekey(t, id); out != "1" {
		t.Errorf("tcpcrypt rekey %s printed %q, want 1", id, out)
	}
	for _, d := range []*daemon{a, b} {
		d.generations(t, any, 2, 2)
	}
	talk()
	other, otherService := n.pairOf(t, true)
	if out := a.rekey(t, "--json"); !strings.Contains(out, "2") {
		t.Errorf("tcpcrypt rekey --json printed %q, want 2 connections", out)
	}
	a.generations(t, func(c conn) bool { return c.Local == client.LocalAddr().String() }, 3, 3)
	b.generations(t, func(c conn) bool { return strings.HasPrefix(c.Local, "[") }, 1, 1)
	talk()
	mustWrite(t, "other client", other, "hello")
	mustRead(t, "other service", otherService, "hello")
	// Half closed, one direction can still change its keys.
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	mustEnd(t, "service", service)
	b.rekey(t)
	mustWrite(t, "service", service, "the last words")
	mustRead(t, "client", client, "the last words")
	if err := service.Close(); err != nil {
		t.Fatal(err)
	}
	mustEnd(t, "client", client)
	if out, err := n.a.try(t, program, "rekey", "no-number", "--socket", n.a.socket()); exitStatus(t, err) != 2 {
		t.Errorf("rekey no-number: %v, %s; want status 2", err, out)
	}
}

func TestManyRekeyingsInALargeTransfer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, limit string
		least       uint64
	}{
		{"by bytes", "rekey_bytes = 200_000", 200},
		{"by frames", "rekey_frames = 10", 80},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t, networkOptions{})
			a, b := n.daemonsUnder(t, require, opportunistic, "")
			if c.name == "by frames" { // at the other end alone
				a.stop(t)
				b.stop(t)
				a, b = n.a.up(t, everything(require, "")), n.b.up(t, everything(require, c.limit))
			} else {
				a.stop(t)
				a = n.a.up(t, everything(require, c.limit))
			}
			server := n.b.serveTransfers(t, 80)
			const size = 50_000_000
			local, err := n.a.transfer(soon(t), netip.AddrPortFrom(n.b.Addr4(), 80), size, size)
			if err != nil {
				t.Fatal(err)
			}
			if err := server.failures(); err != nil {
				t.Error(err)
			}
			opened := a.conn(t, "the connection", func(c conn) bool { return c.Local == local.String() && c.State == "closed" })
			taken := b.conn(t, "its session", func(c conn) bool { return is(c.SessionID, *opened.SessionID) })
			// The client ends its stream before the server sends, and then owes no answers.
			least := opened.GenerationSent
			if c.name == "by frames" {
				least = taken.GenerationSent
			}
			if least < c.least || taken.GenerationSent < c.least {
				t.Errorf("%d and %d key sets in %d bytes each way, want %d at least", opened.GenerationSent, taken.GenerationSent, size, c.least)
			}
			if opened.GenerationSent != taken.GenerationReceived || taken.GenerationSent != opened.GenerationReceived {
				t.Errorf("client %v (%d, %d), server %v (%d, %d)", opened, opened.GenerationSent, opened.GenerationReceived, taken, taken.GenerationSent, taken.GenerationReceived)
			}
		})
	}
}
