package stack

import (
	"time"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
)

// Everything a program, a peer or an attacker could grow, in one place.
const (
	// maxDials bounds outbound connections that wait for the far end: a port scan through us
	// costs about 20 KiB per unanswered SYN.
	maxDials = 4096
	// maxDialsPerDst keeps one dead destination from taking all of maxDials.
	maxDialsPerDst = 1024
	// maxHalfOpen bounds inbound SYNs being answered: a forged SYN costs the sender nothing
	// and us an endpoint until its SYN-ACKs have gone unanswered. Beyond it the oldest goes;
	// twice as many are the end.
	maxHalfOpen = 2048
	// maxFlows bounds the tuples that pass in clear; 100 bytes or so each.
	maxFlows = 65536

	// maxClosedConns and closedConnsFor are what Conns(true) remembers (design: 60 s, 1,024).
	maxClosedConns = 1024
	closedConnsFor = 60 * time.Second
)

// How long a program's SYN may stay away before its connect counts as given up. Linux
// repeats after 1 s and then doubles (or repeats four times after 1 s each, then doubles);
// some stacks start at 3 s.
const (
	firstSYNGap = 4 * time.Second // longest wait for the first repetition
	synGapSlack = 2 * time.Second // on top of twice the last gap
	maxDialTime = 3 * time.Minute // whatever the program repeats
)

// localDialTime bounds the wait for a local service that listens but does not accept
// (a full accept queue drops SYNs).
const localDialTime = 30 * time.Second

// A client that gives its port to a new connection at once waits so long for the local
// leg of the old one to end, which is looked at every localPortCheck.
const (
	localPortTime  = time.Second
	localPortCheck = 2 * time.Millisecond
)

// handshakeTime bounds a handshake that we answer: time for SYN-ACKs after 0, 1, 3 and 7
// seconds. netstack would go on for two minutes, which forged SYNs would make their own.
const handshakeTime = 10 * time.Second

// A destination that ENO did not reach twice within rememberFor is offered none for
// rememberFor. maxRemembered bounds those destinations, and those with one failure.
const (
	rememberFor   = 10 * time.Minute
	maxRemembered = 1024
)

// resetCheck is how often Reset looks for handshakes that began meanwhile.
const resetCheck = 20 * time.Millisecond

// encryptTime is how long Ready is waited for; the key exchange has a deadline of its
// own (15 s), so this one only guards against a fault of ours.
const encryptTime = 60 * time.Second

// Keep-alive finds legs whose other end vanished without a word. wireKeepAlive is the
// default, see Options.KeepAlive.
var (
	hostKeepAlive = tcp.KeepAlive{Idle: 5 * time.Minute, Interval: 30 * time.Second, Count: 4}
	wireKeepAlive = hostKeepAlive
)

// Socket buffers are limits, not allocations: netstack holds what has arrived or is
// unacknowledged. They start at defaultBuffer and tune themselves up to maxBuffer.
const (
	minBuffer     = 4 << 10
	defaultBuffer = 512 << 10
	maxBuffer     = 8 << 20
)

// S's ports: its own network has no other user of them.
const (
	firstPort = 1024
	lastPort  = 65535
)

// timeWait is shorter than the customary 60 s: at 60 s the ports of S would cap one
// destination at a thousand connections per second, and every connection passes the
// kernel's masquerading, whose conntrack keeps a TIME_WAIT of its own for 120 s.
const timeWait = 15 * time.Second

// When a leg was reset, what had been read from it before is given this long to get out
// through the other leg, looked at every flushCheck, before that is reset too.
const (
	flushTime  = time.Second
	flushCheck = 10 * time.Millisecond
)

// A connection that passes in clear is forgotten when its FIN was seen and nothing for
// flowAfterFIN, or when nothing was seen for flowIdle.
const (
	flowAfterFIN = 2 * time.Minute
	flowIdle     = 6 * time.Hour
	flowSweep    = time.Minute
)

// Log lines that a remote can cause are bounded: remoteLogBurst at once, then
// remoteLogRate per second; the rest is counted.
const (
	remoteLogBurst = 100
	remoteLogRate  = 10
)
