package tcptest

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/refs"
)

// Main is a package's TestMain. It checks at the end that no goroutine and no packet was
// left behind.
func Main(m *testing.M) {
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
