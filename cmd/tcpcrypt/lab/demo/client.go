package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// curlLimit is for one transfer, in seconds: a hundred times what it takes.
const curlLimit = "30"

// curlCannotConnect is curl's exit status for a connection that was refused; one that
// was not answered has another.
const curlCannotConnect = 7

// client runs curl against the hosts b and c.
func client() error {
	v := &verdict{w: os.Stdout}
	want := dataSum()
	for _, target := range []struct{ host, what string }{
		{"b", "host b, which runs tcpcrypt"},
		{"c", "host c, which does not"},
	} {
		for _, family := range []string{"-4", "-6"} {
			if family == "-6" && !haveIPv6() {
				continue
			}
			got, took, err := download(family, target.host)
			v.check(err == nil && got == want, "download %d MiB from %s, IPv%s: %s",
				dataSize>>20, target.what, family[1:], outcome(got, want, took, err))
			got, took, err = upload(family, target.host)
			v.check(err == nil && got == want, "upload %d MiB to %s, IPv%s: %s",
				dataSize>>20, target.what, family[1:], outcome(got, want, took, err))
		}
	}
	for _, host := range []string{"b", "c"} {
		start := time.Now()
		err := exec.Command("curl", "-sS", "-4", "--max-time", curlLimit, "http://"+host+":81/").Run()
		var exit *exec.ExitError
		refused := errors.As(err, &exit) && exit.ExitCode() == curlCannotConnect
		v.check(refused, "port 81 of host %s, where nobody listens: curl says %q after %v (7 is refused)", host, fmt.Sprint(err), time.Since(start).Round(time.Millisecond))
	}
	return v.result()
}

func haveIPv6() bool {
	_, err := os.Stat("/proc/net/if_inet6")
	return err == nil
}

// download fetches the data and returns the checksum of what came.
func download(family, host string) (sum string, took time.Duration, err error) {
	h := sha256.New()
	start := time.Now()
	err = curl(nil, h, family, "http://"+host+"/data")
	return hex.EncodeToString(h.Sum(nil)), time.Since(start), err
}

// upload sends the data and returns the checksum of what the server says it got.
func upload(family, host string) (sum string, took time.Duration, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", 0, err
	}
	go func() {
		_ = writeData(w) // ends early if curl does, which tells why
		_ = w.Close()
	}()
	var reply bytes.Buffer
	start := time.Now()
	err = curl(r, &reply, family, "-T", "-", "http://"+host+"/upload")
	_ = r.Close()
	return strings.TrimSpace(reply.String()), time.Since(start), err
}

func curl(stdin *os.File, stdout io.Writer, args ...string) error {
	cmd := exec.Command("curl", append([]string{"-sS", "--fail", "--max-time", curlLimit}, args...)...)
	var stderr strings.Builder
	cmd.Stdout, cmd.Stderr = stdout, &stderr
	if stdin != nil {
		cmd.Stdin = stdin
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

func outcome(got, want string, took time.Duration, err error) string {
	switch {
	case err != nil:
		return err.Error()
	case got != want:
		return "the checksums differ: " + got + ", want " + want
	default:
		return fmt.Sprintf("checksum matches, %.2f s", took.Seconds())
	}
}

// A verdict prints one line for each check and counts them.
type verdict struct {
	w              io.Writer
	passed, failed int
}

func (v *verdict) check(ok bool, format string, args ...any) {
	word := "PASS"
	if ok {
		v.passed++
	} else {
		v.failed++
		word = "FAIL"
	}
	_, _ = fmt.Fprintf(v.w, word+"  "+format+"\n", args...) // the exit status says it too
}

// result is an error if a check has failed, or none was made.
func (v *verdict) result() error {
	if v.failed > 0 || v.passed == 0 {
		return fmt.Errorf("%d of %d checks failed", v.failed, v.passed+v.failed)
	}
	return nil
}
