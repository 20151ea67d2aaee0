package stack

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// A logLimit is a token bucket for lines that a remote can cause.
type logLimit struct {
	perSecond, burst float64

	mu     *sync.Mutex
	tokens float64   // guarded by mu
	at     time.Time // of tokens; guarded by mu
	missed int       // lines since the last one allowed; guarded by mu
}

func newLogLimit(perSecond, burst float64) logLimit {
	return logLimit{perSecond: perSecond, burst: burst, mu: new(sync.Mutex), tokens: burst}
}

// allow reports whether a line may be written, and how many were not since the last.
func (l *logLimit) allow(now time.Time) (missed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.at.IsZero() {
		l.tokens = min(l.burst, l.tokens+now.Sub(l.at).Seconds()*l.perSecond)
	}
	l.at = now
	if l.tokens < 1 {
		l.missed++
		return 0, false
	}
	l.tokens--
	missed, l.missed = l.missed, 0
	return missed, true
}

// logOpen writes the one Info line of a connection.
func (s *Stack) logOpen(c *conn, e encryption) {
	attrs, ok := s.loggable(c, slog.LevelInfo)
	switch {
	case !ok:
	case !e.encrypted:
		s.log.LogAttrs(context.Background(), slog.LevelInfo, "in clear", append(attrs, slog.String("reason", string(e.reason)))...)
	case e.sessionID == nil:
		// TCP knows why before the pumps have noticed.
		err := cmp.Or(secureError(c.wire.ep), c.cause(), errNotReady)
		s.log.LogAttrs(context.Background(), slog.LevelInfo, "key exchange failed", append(attrs, slog.Any("err", err))...)
	default:
		s.log.LogAttrs(context.Background(), slog.LevelInfo, "encrypted", append(attrs,
			slog.Any("role", e.role), slog.Any("tep", e.tep), slog.Any("aead", e.aead))...)
	}
}

// logFailure writes the one line of a connection that never was: Info if a require
// policy ended it, which somebody will wonder about, else Debug.
func (s *Stack) logFailure(c *conn) {
	level := slog.LevelDebug
	reason := c.encryption().reason
	if c.rule.Policy == Require && (errors.Is(c.cause(), errPlain) || secureError(c.wire.ep) != nil) {
		level = slog.LevelInfo
	}
	if attrs, ok := s.loggable(c, level); ok {
		s.log.LogAttrs(context.Background(), level, "connection failed", append(attrs,
			slog.String("reason", string(reason)), slog.Any("err", c.cause()))...)
	}
}

// loggable returns the attributes of a line about c, and whether it is to be written:
// of inbound connections no more are than the limit.
func (s *Stack) loggable(c *conn, level slog.Level) ([]slog.Attr, bool) {
	if !s.log.Enabled(context.Background(), level) {
		return nil, false
	}
	attrs := []slog.Attr{
		slog.Uint64("conn", c.id), slog.String("direction", c.dir.String()),
		slog.Any("local", c.local), slog.Any("remote", c.remote),
		slog.String("policy", c.rule.Policy.String()), slog.String("rule", c.rule.Label),
	}
	if c.dir == Inbound {
		missed, ok := s.remoteLog.allow(time.Now())
		if !ok {
			return nil, false
		}
		if missed > 0 {
			attrs = append(attrs, slog.Int("unlogged", missed))
		}
	}
	return attrs, true
}
