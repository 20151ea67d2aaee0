package tcp

import "time"

// minPTO is the shortest time after which a tail loss probe is sent. Linux has a floor
// of two ticks, 2 to 8 ms; upstream has none. On a path with a round trip of a fraction
// of a millisecond, which every path between us and the host's kernel is, twice that is
// less than the receiver's scheduling takes at times. The probe is then needless, and
// costs more than itself: few receivers say with DSACK that it was, so it counts as a
// loss, and the congestion window is halved, a hundred times per gigabyte where nothing
// was lost.
const minPTO = 10 * time.Millisecond

// schedulePTO wraps upstream's, which takes twice the smoothed round trip.
//
// +checklocks:s.ep.mu
func (s *sender) schedulePTO() {
	if s.ep.protocol.ext == nil {
		s.schedulePTOUpstream()
		return
	}
	s.rtt.Lock()
	srtt := s.rtt.SRTT
	raised := s.rtt.SRTTInited && srtt > 0 && srtt < minPTO/2
	if raised {
		// Raised before rather than the timer afterwards: that would fire early each time.
		s.rtt.SRTT = minPTO / 2
	}
	s.rtt.Unlock()
	s.schedulePTOUpstream()
	if raised {
		s.rtt.Lock()
		s.rtt.SRTT = srtt
		s.rtt.Unlock()
	}
}

// postXmit wraps upstream's, which starts the retransmission timer only if it counts
// packets as outstanding. What SACK makes it take for lost does not count, nor does FIN:
// with nothing else left, and that lost once more, no timer ran and nothing was ever
// sent again. RFC 6298, section 5, wants one as long as anything is unacknowledged.
//
// +checklocks:s.ep.mu
func (s *sender) postXmit(dataSent, shouldScheduleProbe bool) {
	s.postXmitUpstream(dataSent, shouldScheduleProbe)
	if s.ep.protocol.ext != nil && s.SndUna != s.SndNxt && !s.resendTimer.enabled() && !s.probeTimer.enabled() {
		s.resendTimer.enable(s.RTO)
	}
}
