package tun

import "sync/atomic"

// Stats counts what an endpoint has moved and lost since it was made. "In" is from
// the kernel to netstack, "out" the other way. Bytes are of IP packets, headers
// included.
type Stats struct {
	InPackets, InBytes   uint64 // read from the device
	InSuperSegments      uint64 // of these: to be cut into segments, were they to leave the machine
	InBypassed           uint64 // of these: written back on the word of EndpointOptions.Bypass
	InDelivered          uint64 // packets given to netstack; fewer than read where plain segments were merged
	OutPackets, OutBytes uint64 // written to the device, by netstack and WritePacket
	OutSuperSegments     uint64 // of these: given to the kernel whole
	OutSegments          uint64 // plain segments made in software out of super-segments

	// Fallbacks counts packets that the kernel refused to take with an offload and that
	// were written again without.
	Fallbacks uint64

	DropMalformed   uint64 // in: a packet or virtio-net header that makes no sense
	DropChecksum    uint64 // in: wrong IPv4 header checksum (TCP's and UDP's are netstack's to count)
	DropUnsupported uint64 // in: an offload that was not asked for; out: a packet larger than IP allows
	DropDown        uint64 // out: the device was not up
	DropNoBuffers   uint64 // out: the kernel had no memory for it
	DropRefused     uint64 // out, and bypassed packets: the kernel refused it for another reason
}

// counters is Stats while it is being counted.
type counters struct {
	inPackets, inBytes, inSuperSegments, inBypassed, inDelivered atomic.Uint64
	outPackets, outBytes, outSuperSegments, outSegments          atomic.Uint64
	fallbacks                                                    atomic.Uint64
	dropMalformed, dropChecksum, dropUnsupported                 atomic.Uint64
	dropDown, dropNoBuffers, dropRefused                         atomic.Uint64
}

func (c *counters) snapshot() Stats {
	return Stats{
		InPackets:        c.inPackets.Load(),
		InBytes:          c.inBytes.Load(),
		InSuperSegments:  c.inSuperSegments.Load(),
		InBypassed:       c.inBypassed.Load(),
		InDelivered:      c.inDelivered.Load(),
		OutPackets:       c.outPackets.Load(),
		OutBytes:         c.outBytes.Load(),
		OutSuperSegments: c.outSuperSegments.Load(),
		OutSegments:      c.outSegments.Load(),
		Fallbacks:        c.fallbacks.Load(),
		DropMalformed:    c.dropMalformed.Load(),
		DropChecksum:     c.dropChecksum.Load(),
		DropUnsupported:  c.dropUnsupported.Load(),
		DropDown:         c.dropDown.Load(),
		DropNoBuffers:    c.dropNoBuffers.Load(),
		DropRefused:      c.dropRefused.Load(),
	}
}

// refused counts a packet from the device that goes no further.
func (c *counters) refused(r refusal) {
	switch r {
	case refusedMalformed:
		c.dropMalformed.Add(1)
	case refusedChecksum:
		c.dropChecksum.Add(1)
	case refusedUnsupported:
		c.dropUnsupported.Add(1)
	case accepted:
	}
}
