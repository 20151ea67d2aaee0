package tun

import (
	"errors"
	"testing"
)

func TestSegmentsAreThePacketCut(t *testing.T) {
	const cwr, psh, ack, fin = 0x80, 0x08, 0x10, 0x01
	timestamps := []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	var s segmenter
	for _, tt := range []struct {
		name   string
		packet []byte
		mss    int
		want   int // segments
	}{
		{"IPv4", tcpPacket4(&tcpFields{flags: ack | psh}, 4000), 1000, 4},
		{"IPv4 short tail", tcpPacket4(&tcpFields{flags: cwr | ack | psh | fin, tcpOptions: timestamps}, 4001), 1000, 5},
		{"IPv4 options", tcpPacket4(&tcpFields{flags: ack, ipOptions: []byte{1, 1, 1, 0}}, 3000), 1448, 3},
		{"IPv4 largest", tcpPacket4(&tcpFields{flags: ack | psh}, maxPacket-40), 1460, 45},
		{"IPv4 odd segments", tcpPacket4(&tcpFields{flags: ack | psh}, 2000), 537, 4},
		{"IPv6", tcpPacket6(&tcpFields{flags: cwr | ack | psh | fin, tcpOptions: timestamps}, 4001), 1000, 5},
		{"IPv6 hop-by-hop", tcpPacket6(&tcpFields{flags: ack, firstNext: protoHopByHop, ipOptions: []byte{protoTCP, 0, 1, 4, 0, 0, 0, 0}}, 3000), 1440, 3},
		{"one", tcpPacket4(&tcpFields{flags: ack | psh}, 10), 1460, 1},
		{"no payload", tcpPacket6(&tcpFields{flags: ack | fin}, 0), 1440, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			segments, err := s.segments(tt.packet, tt.mss)
			if err != nil {
				t.Fatal(err)
			}
			checkSegments(t, tt.packet, tt.mss, segments)
			n := 0
			for range segments {
				n++
			}
			if n != tt.want {
				t.Errorf("%d segments, want %d", n, tt.want)
			}
			for range segments { // may be left early
				break
			}
		})
	}
}

func TestSegmentsRefuseWhatIsNotTCP(t *testing.T) {
	short := tcpPacket4(nil, 0)
	short[2], short[3] = 0, 39
	offset := tcpPacket4(nil, 0)
	offset[32] = 0xf0
	fragment := tcpPacket4(nil, 100)
	fragment[6] = 0x20
	for name, p := range map[string][]byte{
		"empty": nil, "ICMP": ping4(t), "half a TCP header": short, "TCP header longer than packet": offset, "fragment": fragment,
	} {
		var s segmenter
		if _, err := s.segments(p, 1000); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want %v", name, err, ErrMalformed)
		}
	}
	var s segmenter
	if _, err := s.segments(tcpPacket4(nil, 100), 0); !errors.Is(err, ErrMalformed) {
		t.Errorf("segments of no bytes: %v, want %v", err, ErrMalformed)
	}
}

func BenchmarkSegments(b *testing.B) {
	packet := tcpPacket4(nil, 60<<10)
	var s segmenter
	b.SetBytes(60 << 10)
	b.ReportAllocs()
	for b.Loop() {
		segments, err := s.segments(packet, 1448)
		if err != nil {
			b.Fatal(err)
		}
		for range segments {
		}
	}
}
