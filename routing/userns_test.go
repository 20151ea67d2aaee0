//go:build linux

package routing

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// All of it works without root, in a user namespace.
func TestInUserNamespace(t *testing.T) {
	if !inUserNetns(t) {
		return
	}
	s := newScene(t)
	before := snapshot(t)
	c := fullConfig(t)
	s.apply(t, c)
	for _, p := range places {
		s.connect(t, nil, at(p.server, 80))
		s.server.listen(at(p.server, 81))
		s.tun.send(at(p.s, 5555), at(p.server, 81), "S", 1, 0)
		s.tun.want(at(p.server, 81) + " > " + at(p.s, 5555) + " <S.>")
		c := dial(t, s.server, at(p.server, 4444), at(p.host, 80))
		s.answer(s.tun.want(at(p.server, 4444) + " > " + at(p.s, 80) + " <S>"))
		if c := <-c; c.err != nil {
			t.Error(c.err)
		}
	}
	if err := s.host.ResetCaptured(t.Context()); err != nil {
		t.Error(err)
	}
	s.die(t)
	if err := dialFrom("up0", at(places[0].server, 443)); !unreachable(err) {
		t.Errorf("after a crash: %v, want unreachable", err)
	}
	if err := Clean(t.Context(), testLog(t)); err != nil {
		t.Error(err)
	}
	sameAs(t, before)
}

func TestWithoutPermission(t *testing.T) {
	if os.Getenv(inNetnsMarker) == "" {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), inNetnsMarker+"="+t.Name())
		if os.Getuid() == 0 {
			cmd.SysProcAttr = &unix.SysProcAttr{Credential: nobodyCredential()}
		}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Fatal(err)
		}
		return
	}
	err := Check(t.Context(), testConfig(t))
	var e *Error
	if !errors.Is(err, os.ErrPermission) || !errors.As(err, &e) || !strings.Contains(e.Fix, "root") {
		t.Errorf("Check: %v, want os.ErrPermission with a fix", err)
	}
}
