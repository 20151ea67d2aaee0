package tcp_test

import (
	"testing"

	// Programs may link upstream's package too, gonet's do. Types of both register for
	// save and restore, and two of one name panic at the start, under -race.
	_ "gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

func TestMain(m *testing.M) { tcptest.Main(m) }
