package tcp

import "gvisor.dev/gvisor/pkg/tcpip/header"

// ModerateRecvBuf wraps upstream's, which may grow the receive buffer while the window
// that we advertised is zero, and tells the peer only if the old size has room. The read
// that makes room later finds the window open already. The peer then sends nothing until
// its probe, a timeout later.
func (e *Endpoint) ModerateRecvBuf(copied int) {
	before := e.ops.GetReceiveBufferSize()
	e.moderateRecvBufUpstream(copied)
	if e.protocol.ext == nil || e.ops.GetReceiveBufferSize() == before {
		return
	}
	e.LockUser()
	defer e.UnlockUser()
	if e.rcv == nil || !e.EndpointState().connected() || e.rcv.rcvWnd>>e.rcv.RcvWndScale != 0 {
		return
	}
	if int(e.selectWindow()) >= min(int(e.amss), header.TCPDefaultMSS) {
		e.rcv.nonZeroWindow()
	}
}
