package stack

import (
	"fmt"

	"gvisor.dev/gvisor/pkg/tcpip"
	nstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
)

// TuneTCP sets the options of n's TCP, the ones that a Stack uses: SACK, no delay of
// small segments, cubic, buffers that grow with the path, a short TIME-WAIT. With noRACK
// loss is found by SACK alone.
func TuneTCP(n *nstack.Stack, noRACK bool) error {
	sack, delay, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPDelayEnabled(false), tcpip.TCPModerateReceiveBufferOption(true)
	recovery := tcpip.TCPRACKLossDetection
	if noRACK {
		recovery = 0
	}
	cc, wait, reuse := tcpip.CongestionControlOption("cubic"), tcpip.TCPTimeWaitTimeoutOption(timeWait), tcpip.TCPTimeWaitReuseGlobal
	for _, opt := range []tcpip.SettableTransportProtocolOption{
		&sack, &delay, &moderate, &recovery, &cc, &wait, &reuse,
		&tcpip.TCPSendBufferSizeRangeOption{Min: minBuffer, Default: defaultBuffer, Max: maxBuffer},
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: minBuffer, Default: defaultBuffer, Max: maxBuffer},
	} {
		if err := n.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fmt.Errorf("stack: set %T: %w", opt, tcpipError(err))
		}
	}
	if err := n.SetPortRange(firstPort, lastPort); err != nil {
		return fmt.Errorf("stack: set the port range: %w", tcpipError(err))
	}
	return nil
}
