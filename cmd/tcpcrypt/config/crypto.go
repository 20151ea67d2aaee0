package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// Crypto is the [crypto] table: what negotiations offer, how long keys last, and which
// secrets are kept.
type Crypto struct {
	TEPs  []tcpcrypt.TEP  // most preferred first
	AEADs []tcpcrypt.AEAD // most preferred first

	Resumption bool          // of rules that say nothing of it themselves
	Nonce      int           // bytes of resumption nonce, 0 to 8
	Sessions   int           // at most kept for resumption, of all peers together
	SessionAge time.Duration // a session's life, from its key exchange on

	// RekeyBytes and RekeyFrames lower what one key of ours protects: plaintext bytes, and
	// frames. 0: as much as the AEAD allows.
	RekeyBytes, RekeyFrames uint64
	RekeyAfter              time.Duration // a key's longest use

	KeepAlive time.Duration // how long a connection is idle before its peer is probed; 0: never

	ApplicationAware        bool // our application-aware bit (RFC 8547, section 4.2)
	RequireApplicationAware bool // in clear with peers that do not set theirs
}

const (
	maxNonce    = 8
	maxSessions = 1 << 20 // a few hundred bytes each

	// A secret that lies about for long is worth the theft: it opens the sessions that go on from it.
	minSessionAge, maxSessionAge = time.Second, 24 * time.Hour

	maxRekeyFrames               = tcpcrypt.MaxKeyFramesChaCha20Poly1305
	minRekeyAfter, maxRekeyAfter = time.Second, time.Hour

	minKeepAlive, maxKeepAlive = time.Second, 24 * time.Hour
)

var cryptoKeys = []string{
	"teps", "aeads", "resumption", "nonce", "sessions", "session_age", "rekey_bytes", "rekey_frames", "rekey_after",
	"keepalive", "application_aware", "require_application_aware",
}

func defaultCrypto() Crypto {
	return Crypto{
		TEPs: tcpcrypt.DefaultTEPs(), AEADs: tcpcrypt.DefaultAEADs(),
		Resumption: true, Nonce: maxNonce, Sessions: 4096, SessionAge: time.Hour,
		RekeyAfter: maxRekeyAfter, KeepAlive: 5 * time.Minute,
	}
}

func (c *Crypto) read(t table) {
	if ss, ok := t.strings("teps"); ok {
		c.TEPs = names(t, "teps", ss, tcpcrypt.ParseTEP, tcpcrypt.TEPs())
	}
	if ss, ok := t.strings("aeads"); ok {
		c.AEADs = names(t, "aeads", ss, tcpcrypt.ParseAEAD, tcpcrypt.AEADs())
	}
	c.Resumption = resumption(t, c.Resumption)
	if n, ok := t.between("nonce", 0, maxNonce, "%d to %d bytes"); ok {
		c.Nonce = int(n)
	}
	if n, ok := t.between("sessions", 1, maxSessions, "%d to %d, or resumption = false to keep none"); ok {
		c.Sessions = int(n)
	}
	if d, ok := t.durationBetween("session_age", minSessionAge, maxSessionAge, "resumption = false to keep none"); ok {
		c.SessionAge = d
	}
	if n, ok := t.between("rekey_bytes", 1, tcpcrypt.MaxKeyBytes, "%d to %d, or leave it out for the most"); ok {
		c.RekeyBytes = uint64(n)
	}
	if n, ok := t.between("rekey_frames", 1, maxRekeyFrames, "%d to %d, or leave it out for the most that the AEAD allows"); ok {
		c.RekeyFrames = uint64(n)
	}
	if d, ok := t.durationBetween("rekey_after", minRekeyAfter, maxRekeyAfter, ""); ok {
		c.RekeyAfter = d
	}
	switch d, ok := t.duration("keepalive"); {
	case !ok:
	case d == 0:
		c.KeepAlive = 0
	default:
		if d, ok = t.durationBetween("keepalive", minKeepAlive, maxKeepAlive, `"0s" to turn it off`); ok {
			c.KeepAlive = d
		}
	}
	if b, ok := t.boolean("application_aware"); ok {
		c.ApplicationAware = b
	}
	if b, ok := t.boolean("require_application_aware"); ok {
		c.RequireApplicationAware = b
	}
}

// resumption reads the key that [crypto] and each rule have.
func resumption(t table, def bool) bool {
	if b, ok := t.boolean("resumption"); ok {
		return b
	}
	return def
}

// names reads a list of names, each at most once and at least one.
func names[T interface {
	comparable
	fmt.Stringer
}](t table, key string, ss []item, parse func(string) (T, error), all []T) (vs []T) {
	var want []string
	for _, v := range all {
		want = append(want, v.String())
	}
	list := strings.Join(want, ", ")
	if len(ss) == 0 && !t.hasProblem(key) {
		t.add(key, "is empty; want some of: %s", list)
	}
	for _, it := range ss {
		i, s := it.at, it.s
		v, err := parse(s)
		switch {
		case err != nil:
			t.add(element(key, i), "unknown name %q; one of: %s", s, list)
		case slices.Contains(vs, v):
			t.add(element(key, i), "%q is there twice; want each once, most preferred first", s)
		default:
			vs = append(vs, v)
		}
	}
	return vs
}

// between reads a whole number. want, a format of the two ends, completes "want ...".
func (t table) between(key string, least, most int64, want string) (int64, bool) {
	n, ok := t.integer(key)
	if ok && (n < least || n > most) {
		t.add(key, "%d is out of range; want "+want, n, least, most)
		return 0, false
	}
	return n, ok
}

// duration reads a length of time.
func (t table) duration(key string) (time.Duration, bool) {
	v, given := t.m[key]
	if !given {
		return 0, false
	}
	s, ok := v.(string)
	if !ok {
		t.addIfAbsent(key, `want a length of time such as "90s", "5m" or "1h", not %s`, kind(v))
		return 0, false
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.addIfAbsent(key, `%q is not a length of time; want one such as "90s", "5m" or "1h"`, s)
		return 0, false
	}
	return d, true
}

// durationBetween reads a length of time. or, if not "", is what else would be right.
func (t table) durationBetween(key string, least, most time.Duration, or string) (time.Duration, bool) {
	d, ok := t.duration(key)
	if !ok || least <= d && d <= most {
		return d, ok
	}
	if or != "" {
		or = ", or " + or
	}
	t.add(key, "%q is out of range; want %q to %q%s", t.m[key], short(least), short(most), or)
	return 0, false
}

// short is d, of whole seconds, as one writes it: "1h", not "1h0m0s".
func short(d time.Duration) string {
	for _, u := range []struct {
		d    time.Duration
		name string
	}{{time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}} {
		if d%u.d == 0 {
			return fmt.Sprint(int64(d/u.d)) + u.name
		}
	}
	return d.String()
}
