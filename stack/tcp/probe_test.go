package tcp

import (
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/seqnum"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

func TestTailLossProbeHasFloor(t *testing.T) {
	for _, tt := range []struct {
		name       string
		ext        *protocolExtension
		srtt, want time.Duration
	}{
		{"short round trip", new(protocolExtension), 100 * time.Microsecond, minPTO},
		{"long round trip", new(protocolExtension), 30 * time.Millisecond, 60 * time.Millisecond},
		{"no extension", nil, 100 * time.Microsecond, 200 * time.Microsecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clock := faketime.NewManualClock()
			ns := stack.New(stack.Options{Clock: clock})
			s := &sender{ep: &Endpoint{stack: ns, protocol: &protocol{ext: tt.ext}}}
			s.probeTimer.init(clock, func() {})
			s.resendTimer.init(clock, func() {})
			s.rtt.SRTT, s.rtt.SRTTInited = tt.srtt, true
			s.Outstanding = 2
			s.ep.mu.Lock()
			s.schedulePTO()
			s.ep.mu.Unlock()
			if got := s.probeTimer.target.Sub(clock.NowMonotonic()); got != tt.want {
				t.Errorf("probe in %v, want %v", got, tt.want)
			}
			if got := s.rtt.SRTT; got != tt.srtt {
				t.Errorf("smoothed round trip is %v afterwards, want %v", got, tt.srtt)
			}
		})
	}
}

// TestTimerRunsWhileAnythingIsUnacknowledged, also if all of it is taken for lost, so
// that no packet counts as outstanding.
func TestTimerRunsWhileAnythingIsUnacknowledged(t *testing.T) {
	for _, tt := range []struct {
		name        string
		ext         *protocolExtension
		unacked     seqnum.Size
		outstanding int
		want        bool
	}{
		{"outstanding", new(protocolExtension), 1, 1, true},
		{"all of it lost", new(protocolExtension), 1, 0, true},
		{"no extension", nil, 1, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clock := faketime.NewManualClock()
			s := &sender{ep: &Endpoint{stack: stack.New(stack.Options{Clock: clock}), protocol: &protocol{ext: tt.ext}}}
			s.probeTimer.init(clock, func() {})
			s.resendTimer.init(clock, func() {})
			s.RTO, s.Outstanding, s.SndNxt = time.Second, tt.outstanding, s.SndUna.Add(tt.unacked)
			s.ep.mu.Lock()
			s.postXmit(false, false)
			s.ep.mu.Unlock()
			if got := s.resendTimer.enabled(); got != tt.want {
				t.Errorf("the timer runs: %v, want %v", got, tt.want)
			}
		})
	}
}
