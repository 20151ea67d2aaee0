package wirepeer

import (
	"os"
	"slices"
	"sync"
)

// A Link carries IP packets. Read and Write move one packet each; Read is called by
// one goroutine and ends with an error once Close has been called.
type Link interface {
	Read(packet []byte) (int, error)
	Write(packet []byte) (int, error)
	Close() error
}

// A pipeEnd is one end of a Link in memory.
type pipeEnd struct {
	in, out chan []byte
	closed  chan struct{}
	once    sync.Once
}

// pipeQueue is far above what two windows of 64 KiB hold.
const pipeQueue = 4096

// Pipe joins two links in memory. Packets that find the queue full are lost.
func Pipe() (a, b Link) {
	ab, ba := make(chan []byte, pipeQueue), make(chan []byte, pipeQueue)
	return &pipeEnd{in: ba, out: ab, closed: make(chan struct{})}, &pipeEnd{in: ab, out: ba, closed: make(chan struct{})}
}

func (e *pipeEnd) Read(packet []byte) (int, error) {
	select {
	case p := <-e.in:
		return copy(packet, p), nil
	case <-e.closed:
		return 0, os.ErrClosed
	}
}

func (e *pipeEnd) Write(packet []byte) (int, error) {
	select {
	case e.out <- slices.Clone(packet):
	default:
	}
	return len(packet), nil
}

func (e *pipeEnd) Close() error {
	e.once.Do(func() { close(e.closed) })
	return nil
}
