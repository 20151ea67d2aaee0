package stack

import (
	"context"
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
	attrs := c.attrs()
	if !e.encrypted {
		s.logConn(c, slog.LevelInfo, "in clear", append(attrs, slog.String("reason", string(e.reason))))
		return
	}
	if e.sessionID == nil {
		s.logFailure(c)
		return
	}
	s.logConn(c, slog.LevelInfo, "encrypted", append(attrs,
		slog.Any("role", e.role), slog.Any("tep", e.tep), slog.Any("aead", e.aead)))
}

// logFailure writes the one line of a connection that never was: Info if a require
// policy ended it, which somebody will wonder about, else Debug.
func (s *Stack) logFailure(c *conn) {
	c.mu.Lock()
	err, reason := c.err, c.enc.reason
	c.mu.Unlock()
	level := slog.LevelDebug
	attrs := append(c.attrs(), slog.Any("err", err))
	if c.rule.Policy == Require && c.broken.Load() && reason != reasonOpening {
		level = slog.LevelInfo
		attrs = append(attrs, slog.String("reason", string(reason)))
	}
	s.logConn(c, level, "connection failed", attrs)
}

func (c *conn) attrs() []slog.Attr {
	return []slog.Attr{
		slog.Uint64("conn", c.id), slog.String("direction", c.dir.String()),
		slog.Any("local", c.local), slog.Any("remote", c.remote),
		slog.String("policy", c.rule.Policy.String()), slog.String("rule", c.rule.Label),
	}
}

// logConn writes a line about c, of inbound ones no more than the limit.
func (s *Stack) logConn(c *conn, level slog.Level, msg string, attrs []slog.Attr) {
	ctx := context.Background()
	if !s.log.Enabled(ctx, level) {
		return
	}
	if c.dir == Inbound {
		missed, ok := s.remoteLog.allow(time.Now())
		if !ok {
			return
		}
		if missed > 0 {
			attrs = append(attrs, slog.Int("unlogged", missed))
		}
	}
	s.log.LogAttrs(ctx, level, msg, attrs...)
}
