package tcp

import (
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

const optionNOP = 1

// rawOptions returns the option area of a received segment, valid as long as s is held.
// The field that upstream has for it is valid only until a header of the segment's packet
// is looked at: that may copy the packet's memory and give the old back. So it looks at
// the header, and sets the field for upstream to find.
func (s *segment) rawOptions() []byte {
	t := header.TCP(s.pkt.TransportHeader().Slice())
	s.options = t[header.TCPMinimumSize:t.DataOffset()]
	return s.options
}

// synAnswerTime is how long a SYN must have been out before the next one counts it
// as unanswered. Upstream repeats a SYN after microseconds when it is challenged.
const synAnswerTime = InitialRTO / 2

// extendedSynOptions makes the options of a SYN or SYN-ACK: those of upstream and,
// if it fits, that of the Negotiator. sendSynTCP calls it in place of
// makeSynOptions, for every SYN that there is: first or repeated, of a listener, a
// Forwarder, a simultaneous open, or a cookie (and then e is the listener, which
// negotiates nothing).
func (e *Endpoint) extendedSynOptions(tf tcpFields, opts header.TCPSynOptions) []byte {
	x := e.ext
	if x == nil {
		return makeSynOptions(opts)
	}
	ack := tf.flags.Contains(header.TCPFlagAck)
	if x.ask && !ack {
		x.ask = false
		if ext := e.protocol.ext.Extension; ext != nil {
			x.neg = ext.Active(connOf(tf.id))
			x.open = x.neg != nil
		}
	}
	if !x.open {
		return makeSynOptions(opts)
	}
	option := x.option(e, opts, ack)
	if ack {
		// From here a bare ACK of ours, in SYN-RCVD, must carry the option: netstack
		// answers a repeated SYN with one, and a simultaneous open completes on one.
		x.emitting = option != nil
		if x.emitting && x.nonSYN == nil {
			x.nonSYN = x.neg.NonSYNOption()
		}
	}
	if option == nil {
		return makeSynOptions(opts)
	}
	return layOut(opts, option)
}

// option returns the Negotiator's option for the next SYN or SYN-ACK, nil for none.
func (x *endpointExtension) option(e *Endpoint, opts header.TCPSynOptions, ack bool) []byte {
	if x.withdrawn {
		return nil
	}
	now := e.stack.Clock().NowMonotonic()
	if !ack && x.synSent && now.Sub(x.lastSYN) >= synAnswerTime {
		x.unanswered++
	}
	unanswered := x.unanswered
	if ack {
		unanswered = 0
	}
	option := x.neg.SYNOption(maxOptionSize-tightLen(opts), unanswered)
	x.synSent, x.lastSYN = true, now
	if len(option) == 0 || len(option) > maxOptionSize-tightLen(opts) {
		x.withdrawn = true
		return nil
	}
	if x.synOption == nil {
		x.synOption = append([]byte(nil), option...)
	}
	return x.synOption
}

// tightLen is the length of upstream's SYN options without padding.
func tightLen(opts header.TCPSynOptions) int {
	n := header.TCPOptionMSSLength
	if opts.SACKPermitted {
		n += header.TCPOptionSackPermittedLength
	}
	if opts.TS {
		n += header.TCPOptionTSLength
	}
	if opts.WS >= 0 {
		n += header.TCPOptionWSLength
	}
	return n
}

// layOut returns the options of a SYN with one more, from the pool that putOptions
// gives back to. Upstream's layout stays, with the NOPs that align it, if the option
// fits behind it; else the NOPs go: 21 bytes beside timestamps, SACK and window scale
// need all 40.
func layOut(opts header.TCPSynOptions, option []byte) []byte {
	b := makeSynOptions(opts)
	n := len(b)
	b = b[:maxOptionSize]
	if n+len(option) > maxOptionSize {
		n = header.EncodeMSSOption(uint32(opts.MSS), b)
		if opts.SACKPermitted {
			n += header.EncodeSACKPermittedOption(b[n:])
		}
		if opts.TS {
			n += header.EncodeTSOption(opts.TSVal, opts.TSEcr, b[n:])
		}
		if opts.WS >= 0 {
			n += header.EncodeWSOption(opts.WS, b[n:])
		}
	}
	n += copy(b[n:], option)
	for ; n%4 != 0; n++ {
		b[n] = optionNOP
	}
	return b[:n]
}

// makeOptions wraps upstream's: the options of every segment but SYNs. While the
// negotiation's option is sent, SACK blocks make room for it.
//
// +checklocks:e.mu
func (e *Endpoint) makeOptions(sackBlocks []header.SACKBlock) []byte {
	x := e.ext
	if e.protocol.ext != nil && len(sackBlocks) == 0 && e.rcv != nil && e.rcv.pendingRcvdSegments.Len() > 0 {
		// Upstream tells in ESTABLISHED alone what it has received. After a half-close
		// most data may be still to come, and be lost.
		switch e.EndpointState() {
		case StateFinWait1, StateFinWait2:
			sackBlocks = e.sack.Blocks[:e.sack.NumBlocks]
		default:
		}
	}
	if x == nil || !x.emitting {
		return e.makeOptionsUpstream(sackBlocks)
	}
	pad := (4 - len(x.nonSYN)%4) % 4
	b := e.makeOptionsUpstream(sackBlocks)
	for len(b)+pad+len(x.nonSYN) > maxOptionSize {
		putOptions(b)
		// Upstream encodes as many as fit; offer one less than that.
		sackBlocks = sackBlocks[:min(len(sackBlocks), header.TCPMaxSACKBlocks)-1]
		b = e.makeOptionsUpstream(sackBlocks)
	}
	for range pad {
		b = append(b, optionNOP)
	}
	return append(b, x.nonSYN...)
}

// maxOptionSize wraps upstream's, with which the payload size is computed for good.
// While the negotiation's option is sent the largest options are smaller than
// later, because of the alignment of SACK blocks: so take the larger.
//
// +checklocks:e.mu
func (e *Endpoint) maxOptionSize() int {
	n := e.maxOptionSizeUpstream()
	if x := e.ext; x != nil && x.emitting {
		x.emitting = false
		n = max(n, e.maxOptionSizeUpstream())
		x.emitting = true
	}
	return n
}
