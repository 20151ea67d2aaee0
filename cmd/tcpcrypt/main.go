// Tcpcrypt encrypts TCP between hosts that both run it: RFC 8547 and RFC 8548 in a
// TCP/IP stack of its own on a TUN device. `tcpcrypt --help` tells the rest.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// sameRequest is how long after the first signal further ones are the same request to
// stop: timeout(1), for one, sends each twice.
const sameRequest = 500 * time.Millisecond

func main() {
	ctx, stop := endedBy(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// endedBy returns a context that the first of the signals ends: it asks to stop in
// order. A later one ends the process at once.
func endedBy(ctx context.Context, signals ...os.Signal) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, signals...)
	context.AfterFunc(ctx, func() { time.AfterFunc(sameRequest, stop) })
	return ctx, stop
}
