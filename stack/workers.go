package stack

import (
	"bytes"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// copyBuffer is what a worker reads at once: a few records of the largest size, so that
// the short one that is left over at the end is rare.
const copyBuffer = 256 << 10

// quantum is what a pump may copy before others get their turn.
const quantum = 1 << 20

// A worker runs pumps, one at a time. Its buffer is theirs while they run, so an idle
// connection has neither a buffer nor a goroutine.
type worker struct {
	buf []byte
	dst tcpip.SliceWriter // a field, so that passing it as io.Writer does not allocate
	src bytes.Reader
}

// workers is a fixed number of workers and the queue of pumps that have something to do.
// A pump never blocks, so few workers serve all connections.
type workers struct {
	mu         sync.Mutex
	ready      *sync.Cond
	idle       int   // workers in ready.Wait
	head, tail *pump // linked by pump.next
	closed     bool

	wg sync.WaitGroup
}

func (ws *workers) start(n int) {
	ws.ready = sync.NewCond(&ws.mu)
	for range n {
		ws.wg.Go(func() {
			w := &worker{buf: make([]byte, copyBuffer)}
			for p := ws.pop(); p != nil; p = ws.pop() {
				p.run(w)
			}
		})
	}
}

// push queues p, which is in no queue. It may be called under any lock.
func (ws *workers) push(p *pump) {
	ws.mu.Lock()
	if ws.tail == nil {
		ws.head = p
	} else {
		ws.tail.next = p
	}
	ws.tail = p
	wake := ws.idle > 0
	ws.mu.Unlock()
	if wake {
		ws.ready.Signal()
	}
}

// pop waits for a pump; nil means that the workers are closed and the queue is empty.
func (ws *workers) pop() *pump {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for ws.head == nil {
		if ws.closed {
			return nil
		}
		ws.idle++
		ws.ready.Wait()
		ws.idle--
	}
	p := ws.head
	ws.head, p.next = p.next, nil
	if ws.head == nil {
		ws.tail = nil
	}
	return p
}

// close returns when all workers have gone.
func (ws *workers) close() {
	ws.mu.Lock()
	ws.closed = true
	ws.mu.Unlock()
	ws.ready.Broadcast()
	ws.wg.Wait()
}
