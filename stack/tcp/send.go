package tcp

import (
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/seqnum"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// sendSpace is what a writer needs to know of the send side.
type sendSpace struct {
	room    int // bytes that the send buffer has left; it may be overshot once
	buffer  int // size of the send buffer
	payload int // of one packet, in bytes
	segment int // largest segment that is handed to the link, in bytes
}

// sendSpace returns ErrWouldBlock if there is no room.
func (e *Endpoint) sendSpace() (sendSpace, tcpip.Error) {
	e.LockUser()
	defer e.UnlockUser()
	return e.sendSpaceLocked()
}

// +checklocks:e.mu
func (e *Endpoint) sendSpaceLocked() (sendSpace, tcpip.Error) {
	e.sndQueueInfo.sndQueueMu.Lock()
	defer e.sndQueueInfo.sndQueueMu.Unlock()
	room, err := e.isEndpointWritableLocked()
	if err != nil {
		switch err.(type) {
		case *tcpip.ErrWouldBlock, *tcpip.ErrClosedForSend:
		default:
			// Upstream tells it once. Keep it before anybody sees it gone.
			if e.ext != nil && e.ext.encrypted.Load() {
				err = e.ext.fail(err, &tcpError{err}).tcp
			}
		}
		if !wouldBlock(err) || e.snd == nil {
			return sendSpace{}, err
		}
	}
	sp := sendSpace{room: room, buffer: e.getSendBufferSize(), payload: e.snd.MaxPayloadSize, segment: buffer.MaxChunkSize}
	if e.snd.gso {
		sp.segment = min(sp.segment, int(e.gso.MaxSize-header.TCPTotalHeaderMaximumSize-1))
	}
	return sp, err
}

// queueBytes puts a view, which it takes, at the end of the send queue, even if the
// send buffer is full. apart keeps it from sharing a segment with what follows.
// It returns the space that is left then.
func (e *Endpoint) queueBytes(view *buffer.View, apart bool) (sendSpace, tcpip.Error) {
	e.LockUser()
	defer e.UnlockUser()
	seg, err := e.newSegmentLocked(view)
	if err != nil {
		return sendSpace{}, err
	}
	if apart && e.snd.writeNext == nil {
		// With a sequence number it is not merged with what is queued behind it
		// before it leaves, so its last byte is in a segment with PSH.
		seg.sequenceNumber = e.snd.SndNxt
		seg.flags = header.TCPFlagAck | header.TCPFlagPsh
	}
	e.snd.writeList.PushBack(seg)
	e.sendData(seg)
	return e.sendSpaceLocked()
}

// queueLast puts a view, which it takes, and FIN at the end of the send queue, even if
// the send buffer is full.
func (e *Endpoint) queueLast(view *buffer.View) tcpip.Error {
	e.LockUser()
	defer e.UnlockUser()
	seg, err := e.newSegmentLocked(view)
	if err != nil {
		return err
	}
	e.snd.writeList.PushBack(seg)
	if e.snd.writeNext == nil {
		e.snd.updateWriteNext(seg)
	}
	return e.shutdownLocked(tcpip.ShutdownWrite)
}

// newSegmentLocked returns a segment with a view, which it takes, and counts it as part
// of the send queue.
//
// +checklocks:e.mu
func (e *Endpoint) newSegmentLocked(view *buffer.View) (*segment, tcpip.Error) {
	if _, err := e.sendSpaceLocked(); err != nil {
		if !wouldBlock(err) || e.snd == nil {
			view.Release()
			return nil, err
		}
	}
	e.sndQueueInfo.sndQueueMu.Lock()
	e.sndQueueInfo.SndBufUsed += view.Size()
	e.sndQueueInfo.sndQueueMu.Unlock()
	return newOutgoingSegment(e.ID, e.stack.Clock(), buffer.MakeWithView(view), e.ops.GetMark()), nil
}

// sendSegmentFromPacketBuffer wraps upstream's, which sends FIN in a segment of its own.
// Of an encrypted stream it goes with the end of the last record (RFC 8548, section
// 3.7), or a peer that reads that record might close before our FIN comes, and then
// both would be left in TIME-WAIT.
//
// +checklocks:s.ep.mu
func (s *sender) sendSegmentFromPacketBuffer(pkt *stack.PacketBuffer, flags header.TCPFlags, seq seqnum.Value) tcpip.Error {
	x := s.ep.ext
	if x == nil || !x.is(modeEncrypted) {
		return s.sendSegmentFromPacketBufferUpstream(pkt, flags, seq)
	}
	switch fin := s.writeList.Back(); {
	case flags.Contains(header.TCPFlagFin):
		if x.finSent {
			x.finSent = false // once: what follows are retransmissions
			return nil
		}
	case fin == nil || fin.payloadSize() != 0 || fin.Prev() == nil || fin.Prev().pkt != pkt:
		// No FIN is queued, or this is not the data in front of it.
	case s.finSent:
		flags |= header.TCPFlagFin
	case s.writeNext == fin.Prev() && s.ep.gso.Type != stack.GSOGvisor:
		// sendData comes to FIN next. It needs no room in the network, so the congestion
		// window must not keep it. (gVisor's own segmentation would repeat the flag in
		// every packet.)
		s.Outstanding = min(s.Outstanding, s.SndCwnd-s.pCount(fin.Prev(), s.MaxPayloadSize)-1)
		flags |= header.TCPFlagFin
		x.finSent = true
	}
	return s.sendSegmentFromPacketBufferUpstream(pkt, flags, seq)
}

// catchUpWithFIN counts a FIN as sent that left with data and is acknowledged already. A
// tail loss probe sends the data in front of it and does not come to FIN itself; without
// this the acknowledgement would be for something that was not sent.
//
// +checklocks:s.ep.mu
func (s *sender) catchUpWithFIN() {
	fin := s.writeNext
	if fin == nil || fin.payloadSize() != 0 || !s.maybeSendSegment(fin, 0, s.SndUna.Add(s.SndWnd)) {
		return
	}
	s.Outstanding += s.pCount(fin, s.MaxPayloadSize)
	s.updateWriteNext(fin.Next())
}
