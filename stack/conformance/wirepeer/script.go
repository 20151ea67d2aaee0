package wirepeer

import "time"

// A Script is the TCP of one connection. The zero value is a plain, well-behaved one:
// no ENO, full-sized segments. Its functions are called with the connection locked:
// they must not call its methods.
type Script struct {
	// ENO is put into our SYN or SYN-ACK as it stands: a whole option, several, or
	// something ill-formed. The first whole option is taken as ours for the transcript.
	ENO []byte
	// Answer, if set, makes ENO of a SYN-ACK from the peer's SYN.
	Answer func(syn *Segment) []byte
	// Options are put into our SYN or SYN-ACK before ENO, as they stand.
	Options []byte
	// Simultaneous answers a SYN as if ours had left already: with a SYN, and then, as the
	// peer's has come, with a SYN-ACK. ENO or Answer is in both.
	Simultaneous bool
	// Mark says whether a non-SYN segment of ours is to carry an ENO option; auto is
	// what RFC 8547 section 4.6 wants. nil does as auto says.
	Mark func(s *Segment, auto bool) bool
	// SYNData is sent in our SYN or SYN-ACK. The stream does not begin with it.
	SYNData []byte

	MSS           uint16 // 0: 1460, or 1440 over IPv6
	SegmentSize   int    // payload bytes in a segment of ours; 0: as much as the peer's MSS allows
	Window        uint16 // ours, in units of WindowScale; 0: 65535
	WindowScale   uint8  // 0: option not sent
	Timestamps    bool
	SACKPermitted bool          // offered; no SACK is ever sent
	RTO           time.Duration // 0: 100 ms; doubles up to a second
	Patience      time.Duration // without progress, until ErrTimeout; 0: 20 s

	// Out sees each segment of ours and returns what is sent in its place: nothing
	// (lost), two (doubled), an earlier one (late). What is lost is retransmitted.
	Out func(s *Segment) []*Segment
	// In sees each segment of the peer and reports whether it arrives.
	In func(s *Segment) bool
}

const (
	defaultRTO      = 100 * time.Millisecond
	maxRTO          = time.Second
	defaultPatience = 20 * time.Second
	defaultWindow   = 65535
	maxFlight       = 64 // segments in flight: far below what queues on the way hold
)

func (s *Script) fill(v4 bool) {
	if s.MSS == 0 {
		s.MSS = 1440
		if v4 {
			s.MSS = 1460
		}
	}
	if s.Window == 0 {
		s.Window = defaultWindow
	}
	if s.RTO == 0 {
		s.RTO = defaultRTO
	}
	if s.Patience == 0 {
		s.Patience = defaultPatience
	}
}

// MarkExcept is a Mark under which the first n non-SYN segments of ours carry no ENO
// option, and all others do.
func MarkExcept(n int) func(s *Segment, auto bool) bool {
	return func(*Segment, bool) bool {
		n--
		return n < 0
	}
}

// Lossy returns an Out that loses every nth segment with data, and one that holds back
// every mth until another has passed it. 0 means never.
func Lossy(n, m int) func(s *Segment) []*Segment {
	var count int
	var held *Segment
	return func(s *Segment) []*Segment {
		late := held
		held = nil
		if len(s.Payload) > 0 {
			count++
			switch {
			case n > 0 && count%n == 0:
				s = nil
			case m > 0 && count%m == 0 && late == nil:
				held = s
				return nil
			}
		}
		var out []*Segment
		for _, p := range []*Segment{s, late} {
			if p != nil {
				out = append(out, p)
			}
		}
		return out
	}
}
