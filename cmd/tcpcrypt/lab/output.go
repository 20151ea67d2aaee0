package lab

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
)

const (
	tailLines   = 40   // kept of a process's output, to be shown if it fails
	maxLineSize = 4096 // bytes; what a line has beyond that is cut off
)

var readyWord = regexp.MustCompile(`\bready\b`)

// output is where a daemon or a server writes: it keeps the last lines, passes each on
// to the log, and notices the word ready.
type output struct {
	host  string
	log   LineWriter    // may be nil
	ready chan struct{} // closed at the first line with that word

	mu      sync.Mutex
	partial []byte
	tail    []string
	isReady bool
}

func newOutput(host string, log LineWriter) *output {
	return &output{host: host, log: log, ready: make(chan struct{})}
}

// Write takes output as it comes. It never fails.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(b)
	for {
		line, rest, found := bytes.Cut(b, []byte("\n"))
		o.partial = append(o.partial, line[:min(len(line), maxLineSize-len(o.partial))]...)
		if !found {
			return n, nil
		}
		o.lineLocked(strings.TrimRight(string(o.partial), "\r"))
		o.partial, b = o.partial[:0], rest
	}
}

func (o *output) lineLocked(line string) {
	if len(o.tail) == tailLines {
		o.tail = append(o.tail[:0], o.tail[1:]...)
	}
	o.tail = append(o.tail, line)
	if o.log != nil {
		o.log.WriteLine(o.host, line)
	}
	if !o.isReady && readyWord.MatchString(line) {
		o.isReady = true
		close(o.ready)
	}
}

// last returns what has been kept, indented, to follow an error's text.
func (o *output) last() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	lines := o.tail
	if len(o.partial) > 0 {
		lines = append(lines[:len(lines):len(lines)], string(o.partial))
	}
	var b strings.Builder
	for _, line := range lines {
		b.WriteString("\n    " + o.host + "| " + line)
	}
	return b.String()
}

// A lineLog writes lines, led by the host's name.
type lineLog struct {
	mu sync.Mutex
	w  io.Writer
}

// WriteLine implements LineWriter.
func (l *lineLog) WriteLine(host, line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = fmt.Fprintf(l.w, "%s| %s\n", host, line) // there is nobody else to tell
}
