package e2e

import (
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// The other implementation resumes what the daemon keeps, and the other way round: key
// material agrees, or nothing would be read.

func TestPeerResumesWithEveryTEP(t *testing.T) {
	t.Parallel()
	for _, tep := range wirepeer.TEPs {
		t.Run(fmt.Sprintf("daemon opens, %v", tep), func(t *testing.T) {
			t.Parallel()
			o := newOutbound(t, everything(require, everyAlgorithm))
			var mu sync.Mutex
			cfg := wirepeer.Config{TEPs: []wirepeer.TEP{tep}}
			at, l := o.server(t, false, func() wirepeer.Script {
				mu.Lock()
				defer mu.Unlock()
				return wirepeer.Script{Answer: cfg.Answer}
			})
			for i := range 4 {
				exchanged := l.handshake(cfg)
				app := o.a.mustDial(t, at)
				s := exchanged(t)
				checkPeerResumed(t, o.daemon, app, s, i > 0)
				mu.Lock()
				cfg.Resume = s.Chain()
				mu.Unlock()
			}
		})
		t.Run(fmt.Sprintf("daemon answers, %v", tep), func(t *testing.T) {
			t.Parallel()
			in := newInbound(t, everything(require, everyAlgorithm))
			cfg := wirepeer.Config{TEPs: []wirepeer.TEP{tep}}
			for i := range 4 {
				app, s := in.encrypted(t, wirepeer.Script{}, cfg)
				checkPeerResumed(t, in.daemon, app, s, i > 0)
				cfg.Resume = s.Chain()
			}
		})
	}
}

// checkPeerResumed moves data both ways, and compares what both ends know.
func checkPeerResumed(t *testing.T, d *daemon, app *net.TCPConn, s *wirepeer.Session, resumed bool) {
	t.Helper()
	exchange(t, app, s, streamBytes(100_000), streamBytes(100_000))
	got := d.conn(t, "the session id", bySession(s))
	if got.Resumed != resumed || (s.ID[0]&0x80 != 0) != resumed {
		t.Errorf("%v; want resumed: %t", got, resumed)
	}
}

// A replayed SYN, and a half that nobody knows, make new keys in the same handshake.
func TestUsedAndUnknownIdentifiersAreAnsweredFresh(t *testing.T) {
	t.Parallel()
	in := newInbound(t, everything(require, ""))
	cfg := wirepeer.Config{TEPs: []wirepeer.TEP{wirepeer.Curve25519}}
	_, first := in.encrypted(t, wirepeer.Script{}, cfg)
	cfg.Resume = first.Chain()
	app, second := in.encrypted(t, wirepeer.Script{}, cfg)
	checkPeerResumed(t, in.daemon, app, second, true)
	app, again := in.encrypted(t, wirepeer.Script{}, cfg) // the same ss[1]
	checkPeerResumed(t, in.daemon, app, again, false)
	cfg.Resume = second.Chain().Ahead(3) // what lies between is skipped
	app, ahead := in.encrypted(t, wirepeer.Script{}, cfg)
	checkPeerResumed(t, in.daemon, app, ahead, true)
	cfg.Resume = ahead.Chain().Ahead(20) // too far
	app, far := in.encrypted(t, wirepeer.Script{}, cfg)
	checkPeerResumed(t, in.daemon, app, far, false)
}
