// Command demo shows tcpcrypt at work, with a web server and curl that know nothing of
// it, and judges what it shows. It is run by `make demo`:
//
//	demo bin/tcpcrypt
//
// A lab of three hosts is made: a and b run the daemon, c does not. curl on a downloads
// from and uploads to both, and tries a port where nobody listens. Meanwhile the link
// of a is captured, and afterwards searched for what was sent.
//
// Each check is a line that begins with PASS or FAIL; the exit status is 0 if none
// failed. Nothing is left behind.
package main

import (
	"fmt"
	"os"
)

func main() {
	err := fmt.Errorf("usage: demo TCPCRYPT")
	switch args := os.Args[1:]; {
	case len(args) == 1 && args[0] == "serve": // on b and c
		err = serve()
	case len(args) == 1 && args[0] == "client": // on a
		err = client()
	case len(args) == 1:
		err = show(args[0])
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}
