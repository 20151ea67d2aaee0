package stack

import (
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
)

func TestMain(m *testing.M) { tcptest.Main(m) }
