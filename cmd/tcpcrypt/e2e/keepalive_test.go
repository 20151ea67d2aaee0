package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// Whether the peer still lives, asked by rekeying: RFC 8548, section 3.9.

// aliveAfter is far beyond what a dead peer is given by keepalive = "2s": four probes a
// second apart.
const (
	askEvery2s = `keepalive = "2s"`
	aliveAfter = 15 * time.Second
)

func TestDeadPathIsNoticed(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"client", "server"} {
		t.Run("by the "+side, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t, networkOptions{})
			n.servicePorts(t)
			a, b := n.daemonsUnder(t, opportunistic, opportunistic, `keepalive = "0s"`)
			own, gone := a, n.b
			if side == "client" {
				a.stop(t)
				own = n.a.up(t, everything(opportunistic, askEvery2s))
			} else {
				b.stop(t)
				own, gone = n.b.up(t, everything(opportunistic, askEvery2s)), n.a
			}
			client, service := n.pairOf(t, false)
			mustWrite(t, "client", client, "hello")
			mustRead(t, "service", service, "hello")
			n.box(t, filter(fmt.Sprintf("iifname %q drop", gone.RouterInterface())))
			app := client
			if side == "server" {
				app = service
			}
			if got, err := io.ReadAll(app); err == nil || len(got) > 0 || isTimeout(err) {
				t.Errorf("program on the %s: %q, %v; want the connection to fail", side, got, err)
			}
			own.conn(t, "the dead connection", func(c conn) bool { return c.State == "closed" && c.Encrypted })
		})
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error) //nolint:errorlint // as Read returned it
	return ok && e.Timeout() && errno(err) == 0
}

// A peer whose TCP acknowledges everything and whose tcpcrypt answers nothing is dead,
// or somebody else.
func TestPeerThatOnlyAcknowledgesIsNoticed(t *testing.T) {
	t.Parallel()
	bothRolesWith(t, everything(opportunistic, askEvery2s), func(t *testing.T, connect connector) {
		t.Helper()
		p := connect(t, wirepeer.Script{})
		// One that answers is left alone all the while.
		answered := make(chan error, 1)
		go func() {
			_, err := p.peer.ReadData(soon(t), 5) // answers the probes meanwhile
			answered <- err
		}()
		mute := connect(t, wirepeer.Script{})
		mute.peer.NoAnswers = true
		mute.peer.Send(wirepeer.Frame{Data: []byte("hello")})
		mustRead(t, "program", mute.app, "hello")
		mustReset(t, "program", mute.app, nil)
		mustWrite(t, "program", p.app, "hello")
		if err := <-answered; err != nil {
			t.Errorf("peer that answers: %v", err)
		}
	})
}

// A program that does not read for long is not a dead peer, at either end.
func TestPausedDownloadIsNotADeadPeer(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	n.servicePorts(t)
	n.daemonsUnder(t, opportunistic, opportunistic, askEvery2s)
	client, service := n.pairOf(t, false)
	const size = 150_000_000 // more than all buffers on the way: four of 8 MiB in the stacks, and the kernels'
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(service, stream(size))
		if err == nil {
			err = service.CloseWrite()
		}
		sent <- err
	}()
	idle, idleService := n.pairOf(t, false)
	select {
	case err := <-sent:
		t.Fatalf("%d bytes were taken while nobody reads, %v", size, err)
	case <-time.After(aliveAfter): // the time is what this is about
	}
	mustReadAll(t, client, streamBytes(size))
	if err := <-sent; err != nil {
		t.Error(err)
	}
	// And an idle one has been asked, and lives.
	mustWrite(t, "idle client", idle, "hello")
	mustRead(t, "idle service", idleService, "hello")
}

// Over a connection in clear TCP's own keep-alive does it.
func TestDeadPathOfAPlainConnectionIsNoticed(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, networkOptions{})
	a := n.a.up(t, everything(opportunistic, askEvery2s))
	l := n.b.listen(t, 80)
	client := n.a.mustDial(t, netip.AddrPortFrom(n.b.Addr4(), 80))
	service := accept(t, l)
	mustWrite(t, "client", client, "hello")
	mustRead(t, "service", service, "hello")
	n.box(t, filter(fmt.Sprintf("iifname %q drop", n.b.RouterInterface())))
	if got, err := io.ReadAll(client); err == nil || len(got) > 0 || isTimeout(err) {
		t.Errorf("program: %q, %v; want the connection to fail", got, err)
	}
	a.conn(t, "the dead connection", func(c conn) bool { return c.State == "closed" && !c.Encrypted })
}
