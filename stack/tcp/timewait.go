package tcp

import "time"

// handleTimeWaitSegment wraps upstream's and remembers a SYN that may open the
// connection anew under RFC 1122, section 4.2.2.13.
//
// +checklocks:r.ep.mu
func (r *receiver) handleTimeWaitSegment(s *segment) (resetTimeWait, newSyn bool) {
	resetTimeWait, newSyn = r.handleTimeWaitSegmentUpstream(s)
	if x := r.ep.ext; newSyn && x != nil && x.reopeningBy == nil {
		s.IncRef()
		x.reopeningBy = s
	}
	return resetTimeWait, newSyn
}

// handleTimeWaitSegments wraps upstream's, which hands such a SYN only to a listener.
// A Forwarder has none, and the SYN would be dropped for as long as TIME-WAIT lasts:
// of clients that reuse their port, and of servers that close first. So the endpoint
// ends here and the SYN is delivered once more, to whoever takes SYNs now.
//
// +checklocks:e.mu
func (e *Endpoint) handleTimeWaitSegments() (extendTimeWait bool, reuseTW func()) {
	if e.protocol.ext == nil {
		return e.handleTimeWaitSegmentsUpstream()
	}
	if e.ext == nil {
		e.ext = new(endpointExtension)
		e.ext.mode.Store(uint32(modePlain))
	}
	extendTimeWait, reuseTW = e.handleTimeWaitSegmentsUpstream()
	s := e.ext.reopeningBy
	e.ext.reopeningBy = nil
	if s == nil {
		return extendTimeWait, reuseTW
	}
	if reuseTW != nil {
		s.DecRef()
		return extendTimeWait, reuseTW
	}
	return false, func() {
		defer s.DecRef()
		nic, err := e.stack.GetNICByID(s.pkt.NICID)
		if err != nil {
			return // the NIC is gone, and the SYN with it
		}
		nic.DeliverTransportPacket(ProtocolNumber, s.pkt)
	}
}

// getTimeWaitDuration wraps upstream's, which knows only the stack's setting.
//
// +checklocks:e.mu
func (e *Endpoint) getTimeWaitDuration() time.Duration {
	if x := e.ext; x != nil && x.timeWait != nil {
		return *x.timeWait
	}
	return e.getTimeWaitDurationUpstream()
}
