package tcp

import "sync"

// Sizes of the pooled buffers, in bytes. An idle connection has none; the first
// record of a connection fits the smallest; the largest fits every record of 65,535
// bytes and its header.
var recordBufferSizes = [...]int{2 << 10, 16 << 10, 64<<10 + 64}

var recordBufferPools [len(recordBufferSizes)]sync.Pool

// A recordBuffer is on loan from a pool until put.
type recordBuffer struct {
	b     []byte
	class int // -1: too large for a pool
}

// getRecordBuffer returns a buffer of at least n bytes, with anything in it.
func getRecordBuffer(n int) *recordBuffer {
	for class, size := range recordBufferSizes {
		if n > size {
			continue
		}
		if r, ok := recordBufferPools[class].Get().(*recordBuffer); ok {
			return r
		}
		return &recordBuffer{b: make([]byte, size), class: class}
	}
	return &recordBuffer{b: make([]byte, n), class: -1}
}

func (r *recordBuffer) put() {
	if r.class >= 0 {
		recordBufferPools[r.class].Put(r)
	}
}
