package e2e

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/gopacket/gopacket/pcapgo"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// ethernetHeaderLen is what precedes the IP packet in a capture of a link.
const ethernetHeaderLen = 14

// captured reads every packet that passed the host's link, in order. The network has
// to be finished.
func (n *network) captured(t *testing.T, host string) (packets [][]byte) {
	t.Helper()
	f, err := os.Open(filepath.Join(n.pcap, host+".pcapng"))
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(f)
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for {
		frame, _, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(frame) > ethernetHeaderLen {
			packets = append(packets, frame[ethernetHeaderLen:])
		}
	}
	if len(packets) == 0 {
		t.Fatalf("the link of host %s was captured, and nothing passed", host)
	}
	for _, c := range n.Captures() {
		if c.Host == host && c.Lost > 0 {
			t.Fatalf("the capture of host %s has lost %d packets", host, c.Lost)
		}
	}
	return packets
}

// segments picks the TCP segments to or from that port.
func segments(packets [][]byte, port uint16) (all []wirepeer.Segment) {
	for _, p := range packets {
		if s, ok := wirepeer.ParseCaptured(p); ok && (s.Src.Port() == port || s.Dst.Port() == port) {
			all = append(all, s)
		}
	}
	return all
}

// A flowID tells connections apart, the same for both directions.
type flowID struct{ low, high netip.AddrPort }

func flowOf(s *wirepeer.Segment) flowID {
	if s.Src.Compare(s.Dst) < 0 {
		return flowID{s.Src, s.Dst}
	}
	return flowID{s.Dst, s.Src}
}

// byFlow sorts segments by connection, keeping their order.
func byFlow(all []wirepeer.Segment) map[flowID][]wirepeer.Segment {
	flows := make(map[flowID][]wirepeer.Segment)
	for _, s := range all {
		flows[flowOf(&s)] = append(flows[flowOf(&s)], s)
	}
	return flows
}

func hasENO(s wirepeer.Segment) bool { return s.HasENO() }
