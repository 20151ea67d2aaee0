package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/lab"
)

// show runs the lab and judges what it reports and what was on the wire.
func show(tcpcrypt string) (err error) {
	if _, err := exec.LookPath("curl"); err != nil {
		return errors.New("curl is needed and not here\n  try: apt-get install curl")
	}
	if tcpcrypt, err = filepath.Abs(tcpcrypt); err != nil {
		return err
	}
	if _, err := os.Stat(tcpcrypt); err != nil {
		return fmt.Errorf("%w\n  try: make build", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "tcpcrypt-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	wire, err := watch(dir)
	if err != nil {
		return err
	}
	server := "exec '" + strings.ReplaceAll(self, "'", `'\''`) + "' serve"
	args := []string{
		"lab", "--host", "a", "--host", "b", "--host", "c=plain", "--serve", "b=" + server, "--serve", "c=" + server,
		"--pcap", dir, "--json", "--", self, "client",
	}
	say("$ tcpcrypt %s\n\n", typed(args))
	cmd := exec.Command(tcpcrypt, args...)
	var report lastLine
	cmd.Stdout, cmd.Stderr = os.Stdout, &report
	runErr := runToTheEnd(cmd)
	seen, wireErr := wire.close()

	var r lab.Report
	if err := json.Unmarshal(report.last(), &r); err != nil {
		_, _ = os.Stderr.Write(report.last()) // it is why
		return fmt.Errorf("the lab did not get as far as a report: %w", cmp.Or(runErr, err))
	}
	captures := r.Captures
	r.Captures = nil // the table need not name files that are gone when it is read
	say("\n%s\n", r.Table())
	r.Captures = captures
	v := &verdict{w: os.Stdout}
	v.check(runErr == nil, "the lab ended with status %d", r.ExitStatus)
	judgeReport(v, &r)
	if wireErr != nil {
		v.check(false, "the capture can be read: %v", wireErr)
	} else {
		judgeWire(v, &r, seen)
	}
	if err := v.result(); err != nil {
		return err
	}
	say("\nPASS: everything above\n")
	return nil
}

// typed is how a user would type args.
func typed(args []string) string {
	var words []string
	for _, arg := range args {
		if strings.ContainsAny(arg, " '") {
			arg = strconv.Quote(arg)
		}
		words = append(words, arg)
	}
	return strings.Join(words, " ")
}

// say tells the user; the exit status says what matters as well.
func say(format string, args ...any) { _, _ = fmt.Fprintf(os.Stdout, format, args...) }

// runToTheEnd runs cmd and hands it our signals, so that we outlive it and clean up.
func runToTheEnd(cmd *exec.Cmd) error {
	signals := make(chan os.Signal, 1) // one is enough
	signal.Notify(signals, os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // or the terminal's would reach it twice
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			_ = cmd.Process.Signal(s) // it may just have ended
		case err := <-ended:
			return err
		}
	}
}

// watch prepares dir for the captures: that of a is a pipe to us, so that no disk has
// to hold it, the others, which show the same, are nothing.
func watch(dir string) (*watcher, error) {
	fifo := filepath.Join(dir, "a.pcapng")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return nil, err
	}
	for _, host := range []string{"b", "c"} {
		if err := os.Symlink(os.DevNull, filepath.Join(dir, host+".pcapng")); err != nil {
			return nil, err
		}
	}
	return newWatcher(fifo)
}

// judgeReport checks what the daemons say.
func judgeReport(v *verdict, r *lab.Report) {
	var encrypted, equal, plain, why int
	for _, c := range r.Connections {
		switch {
		case c.Opened == nil || c.Opened.BytesSent+c.Opened.BytesReceived < dataSize: // port 81
		case c.Server == "b":
			encrypted++
			if c.SameID != nil && *c.SameID {
				equal++
			}
		case c.Server == "c":
			plain++
			if c.Opened.Reason != nil && *c.Opened.Reason == "no-eno" {
				why++
			}
		}
	}
	want := 2
	if haveIPv6() {
		want = 4
	}
	v.check(encrypted == want && equal == want, "%d transfers with b, %d of them encrypted with the same session id at both ends, want %d", encrypted, equal, want)
	v.check(plain == want && why == want, "%d transfers with c, %d of them in clear because it does not know ENO, want %d", plain, why, want)
}

// lastLine passes on what it gets to standard error but for the last line, which is
// the report.
type lastLine struct{ pending []byte }

func (l *lastLine) Write(b []byte) (int, error) {
	l.pending = append(l.pending, b...)
	if end := bytes.LastIndexByte(bytes.TrimSuffix(l.pending, []byte("\n")), '\n'); end >= 0 {
		if _, err := os.Stderr.Write(l.pending[:end+1]); err != nil {
			return 0, err
		}
		l.pending = append([]byte(nil), l.pending[end+1:]...)
	}
	return len(b), nil
}

func (l *lastLine) last() []byte { return l.pending }

var _ io.Writer = (*lastLine)(nil)
