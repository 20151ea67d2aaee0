package tcp_test

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/refs"

	// Programs may link upstream's package too, gonet's do. Types of both register for
	// save and restore, and two of one name panic at the start, under -race.
	_ "gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// TestMain checks at the end that no goroutine and no packet was left behind.
func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.bench").Value.String() == "" {
		refs.SetLeakMode(refs.LeaksPanic) // it keeps every reference in a map
	}
	code := m.Run()
	if code == 0 { // a test that failed may have left anything
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		refs.DoLeakCheck()
	}
	os.Exit(code)
}
