package socket

import (
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/waiter"
)

// A half is one direction of a connection, or a listener: the one call that may be
// waiting, what wakes it, and its deadline.
//
// It costs no goroutine and nothing per call. Its events come from a queue of netstack's,
// often under locks of TCP, so they only wake.
type half struct {
	mu   sync.Mutex    // held by the call that is at work; others queue here
	wake chan struct{} // capacity 1: look again

	entry waiter.Entry

	timeMu sync.Mutex
	timer  *time.Timer // the one that counts; others are too late. Guarded by timeMu
	passed bool        // the deadline has. Guarded by timeMu
}

func (h *half) init(q *waiter.Queue, mask waiter.EventMask) {
	h.wake = make(chan struct{}, 1)
	h.entry.Init(h, mask|waiter.EventErr|waiter.EventHUp)
	q.EventRegister(&h.entry)
}

// NotifyEvent implements waiter.EventListener.
func (h *half) NotifyEvent(waiter.EventMask) {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// setDeadline makes the deadline t, the zero time for none. A call that waits sees the
// new one.
func (h *half) setDeadline(t time.Time) {
	h.timeMu.Lock()
	defer h.timeMu.Unlock()
	if h.timer != nil {
		h.timer.Stop()
		h.timer = nil
	}
	h.passed = false
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		h.passed = true
		h.NotifyEvent(0)
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(left, func() {
		h.timeMu.Lock()
		defer h.timeMu.Unlock()
		if h.timer == timer {
			h.passed = true
			h.NotifyEvent(0)
		}
	})
	h.timer = timer
}

func (h *half) expired() bool {
	h.timeMu.Lock()
	defer h.timeMu.Unlock()
	return h.passed
}
