package stack

import (
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
)

// A leg is one of a connection's two endpoints.
type leg struct {
	ep    tcpip.Endpoint
	queue waiter.Queue // ep's
	entry waiter.Entry

	in  *pump // reads from ep
	out *pump // writes to ep

	dead atomic.Bool // reading or writing has failed for good
}

// NotifyEvent implements waiter.EventListener. It runs under the endpoint's lock at
// times, so it only puts pumps to work.
func (l *leg) NotifyEvent(mask waiter.EventMask) {
	if mask&(waiter.EventErr|waiter.EventHUp) != 0 {
		l.in.wake(wakeAny)
		l.out.wake(wakeAny)
		return
	}
	if mask&(waiter.ReadableEvents|waiter.EventRdHUp) != 0 {
		l.in.wake(wakeReadable)
	}
	if mask&waiter.WritableEvents != 0 {
		l.out.wake(wakeWritable)
	}
}

// broken reports whether the leg ended other than by FIN both ways.
func (l *leg) broken() bool {
	return l.dead.Load() || tcp.EndpointState(l.ep.State()) == tcp.StateError || secureError(l.ep) != nil
}

// A pump copies one direction of a connection: from src's leg to dst's. It is run by
// the workers whenever src has something and dst has room.
type pump struct {
	c        *conn
	src, dst *leg
	count    *atomic.Uint64 // application bytes

	state atomic.Uint32 // of pumpState
	next  *pump         // guarded by workers.mu

	// Of the worker that runs the pump.
	rest    []byte    // of restBuf: read and not yet written
	restBuf *[]byte   // from restPool, nil if rest is empty
	copied  int       // since the last ModerateRecvBuf
	broke   bool      // src is broken and read to its end
	until   time.Time // when to stop waiting for dst, src being broken
}

// pumpState is what a pump waits for.
type pumpState = uint32

const (
	pumpIdle    pumpState = iota // for src to become readable
	pumpBlocked                  // for dst to become writable
	pumpRunning                  // for nothing: it is queued or runs
	pumpRerun                    // the same, and something happened meanwhile
	pumpDone                     // for nothing ever
)

type wakeUp uint8

const (
	wakeReadable wakeUp = 1 << iota
	wakeWritable
	wakeAny = wakeReadable | wakeWritable
)

// wake tells p that its src became readable or its dst writable. It never blocks.
func (p *pump) wake(why wakeUp) {
	for {
		switch st := p.state.Load(); st {
		case pumpIdle, pumpBlocked:
			if st == pumpIdle && why&wakeReadable == 0 || st == pumpBlocked && why&wakeWritable == 0 {
				return
			}
			if p.state.CompareAndSwap(st, pumpRunning) {
				p.c.s.work.push(p)
				return
			}
		case pumpRunning:
			if p.state.CompareAndSwap(st, pumpRerun) {
				return
			}
		default:
			return
		}
	}
}

// run copies until there is nothing to do, the connection is over, or others are to
// have their turn.
func (p *pump) run(w *worker) {
	for {
		switch next := p.step(w); next {
		case pumpDone:
			p.release()
			p.state.Store(pumpDone)
			p.c.pumpDone()
			return
		case pumpRunning:
			p.c.s.work.push(p)
			return
		default:
			p.moderate()
			if p.state.CompareAndSwap(pumpRunning, next) {
				return
			}
			p.state.Store(pumpRunning) // from pumpRerun: what happened, step sees
		}
	}
}

// step copies up to a quantum and returns what is to be waited for.
func (p *pump) step(w *worker) pumpState {
	for left := quantum; left > 0; {
		if p.c.aborting.Load() {
			return pumpDone
		}
		if p.dst.broken() {
			// What the other pump can still read from that leg it delivers; at the end it meets the error.
			p.c.broken.Store(true)
			return pumpDone
		}
		if len(p.rest) == 0 {
			if p.broke {
				return p.flush()
			}
			if p.dst.ep.Readiness(waiter.WritableEvents)&waiter.WritableEvents == 0 {
				return p.blocked()
			}
			n, next := p.read(w)
			if n == 0 {
				if next == pumpRunning { // src broke
					continue
				}
				return next
			}
			left -= n
			p.write(w, w.buf[:n])
			continue
		}
		n := p.write(w, p.rest)
		if n == 0 {
			return p.blocked()
		}
	}
	return pumpRunning
}

// read reads into w's buffer. With n 0 it returns what comes next; pumpRunning means
// that src is broken.
func (p *pump) read(w *worker) (n int, next pumpState) {
	w.dst = w.buf
	res, err := p.src.ep.Read(&w.dst, tcpip.ReadOptions{})
	switch err.(type) {
	case nil:
		if res.Count == 0 {
			return 0, pumpIdle
		}
		p.copied += res.Count
		if p.copied >= copyBuffer {
			p.moderate()
		}
		if p.src == &p.c.wire {
			p.count.Add(uint64(res.Count))
		}
		return res.Count, pumpRunning
	case *tcpip.ErrWouldBlock:
		return 0, pumpIdle
	case *tcpip.ErrClosedForReceive:
		if !p.src.broken() {
			// FIN, and the end that encryption wants proof of. An error means that dst broke, which
			// the other pump meets.
			_ = p.dst.ep.Shutdown(tcpip.ShutdownWrite)
			return 0, pumpDone
		}
	}
	p.broke = true
	p.src.dead.Store(true)
	p.c.fail(err)
	return 0, pumpRunning
}

// write writes b, which is w's buffer or p.rest, and keeps the rest. It returns how much
// was written, -1 if dst is broken.
func (p *pump) write(w *worker, b []byte) int {
	w.src.Reset(b)
	wrote, err := p.dst.ep.Write(&w.src, tcpip.WriteOptions{})
	n := int(wrote)
	w.src.Reset(nil)
	if p.dst == &p.c.wire {
		p.count.Add(uint64(n))
	}
	switch err.(type) {
	case nil, *tcpip.ErrWouldBlock:
		p.keep(b[n:])
		return n
	default:
		p.dst.dead.Store(true)
		p.c.fail(err)
		p.keep(nil)
		return -1
	}
}

var restPool = sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}

// keep makes b, which is w's buffer's or already p.rest's, p.rest.
func (p *pump) keep(b []byte) {
	switch {
	case len(b) == 0:
		p.release()
	case p.restBuf == nil:
		p.restBuf = restPool.Get().(*[]byte)
		p.rest = (*p.restBuf)[:copy(*p.restBuf, b)]
	default:
		p.rest = b
	}
}

func (p *pump) release() {
	if p.restBuf != nil {
		restPool.Put(p.restBuf)
		p.restBuf, p.rest = nil, nil
	}
}

// moderate lets netstack tune the receive buffer by what was read. It costs the
// endpoint's lock, so small exchanges go without.
func (p *pump) moderate() {
	const enough = 16 << 10
	if p.copied < enough {
		return
	}
	p.src.ep.ModerateRecvBuf(p.copied)
	p.copied = 0
}

// blocked waits for dst, but not for ever if src is broken: then dst is to hear of it.
func (p *pump) blocked() pumpState {
	if p.src.broken() {
		return p.linger()
	}
	return pumpBlocked
}

// flush waits until dst has got rid of what was read before src broke, so that the
// reset does not overtake it.
func (p *pump) flush() pumpState {
	if n, err := p.dst.ep.GetSockOptInt(tcpip.SendQueueSizeOption); err != nil || n == 0 {
		return pumpDone
	}
	return p.linger()
}

// linger looks again soon, for flushTime.
func (p *pump) linger() pumpState {
	now := time.Now()
	if p.until.IsZero() {
		p.until = now.Add(flushTime)
	}
	if now.After(p.until) {
		p.c.broken.Store(true)
		return pumpDone
	}
	time.AfterFunc(flushCheck, func() { p.wake(wakeAny) })
	return pumpBlocked
}
