// Tcpcrypt encrypts TCP between hosts that both run it: RFC 8547 and RFC 8548 in a
// TCP/IP stack of its own on a TUN device. `tcpcrypt --help` tells the rest.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks to stop in order, a second one ends us at once.
	context.AfterFunc(ctx, stop)
	status := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}
