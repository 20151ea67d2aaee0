package tcp

import (
	"bytes"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// TestOptionsOutliveThePacket: the memory of a delivered packet is another packet's
// before its segment is handled.
func TestOptionsOutliveThePacket(t *testing.T) {
	options := []byte{69, 2, optionNOP, optionNOP}
	for name, flags := range map[string]header.TCPFlags{"SYN": header.TCPFlagSyn, "ACK": header.TCPFlagAck} {
		t.Run(name, func(t *testing.T) {
			wire := make([]byte, header.IPv4MinimumSize+header.TCPMinimumSize+len(options))
			header.IPv4(wire).Encode(&header.IPv4Fields{
				TotalLength: uint16(len(wire)), TTL: 64, Protocol: uint8(ProtocolNumber),
				SrcAddr: tcpip.AddrFrom4([4]byte{10, 0, 0, 1}), DstAddr: tcpip.AddrFrom4([4]byte{10, 0, 0, 2}),
			})
			tcp := header.TCP(wire[header.IPv4MinimumSize:])
			tcp.Encode(&header.TCPFields{DataOffset: uint8(header.TCPMinimumSize + len(options)), Flags: flags})
			copy(tcp[header.TCPMinimumSize:], options)
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(wire)})
			pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
			pkt.RXChecksumValidated = true
			pkt.NetworkHeader().Consume(header.IPv4MinimumSize)
			pkt.TransportHeader().Consume(len(tcp))

			s, err := newIncomingSegment(stack.TransportEndpointID{}, tcpip.NewStdClock(), pkt)
			if err != nil {
				t.Fatalf("newIncomingSegment: %v", err)
			}
			defer s.DecRef()
			shared := pkt.TransportHeader().Slice()
			s.pkt.NetworkHeader().Slice() // the segment's packet gets memory of its own
			clear(shared)
			pkt.DecRef()
			if got := s.rawOptions(); !bytes.Equal(got, options) {
				t.Errorf("rawOptions() = % x, want % x", got, options)
			}
			if !bytes.Equal(s.options, options) {
				t.Errorf("upstream sees % x, want % x", s.options, options)
			}
		})
	}
}
