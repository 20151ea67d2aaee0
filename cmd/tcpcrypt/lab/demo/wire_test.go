package main

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOptionIsFound(t *testing.T) {
	for _, tc := range []struct {
		options []byte
		want    bool
	}{
		{nil, false},
		{[]byte{69, 3, 0x23}, true},
		{[]byte{2, 4, 5, 180, 1, 1, 69, 2}, true},
		{[]byte{2, 4, 69, 69, 1, 3, 3, 7}, false}, // a value, not a kind
		{[]byte{0, 69, 2}, false},                 // behind the end of the list
		{[]byte{8, 0, 69, 2}, false},              // no length
		{[]byte{8, 40, 69, 2}, false},             // longer than there is
		{[]byte{1, 1, 1, 8}, false},               // cut off
		{append(bytes.Repeat([]byte{1}, 38), 69, 2), true},
	} {
		if got := hasOption(tc.options, enoKind); got != tc.want {
			t.Errorf("hasOption(%v) = %t, want %t", tc.options, got, tc.want)
		}
	}
}

// frame is an Ethernet frame with an empty IP header of that many bytes and TCP.
func frame(ethertype uint16, ipHeader int, tcp []byte) []byte {
	f := binary.BigEndian.AppendUint16(make([]byte, 12), ethertype)
	ip := make([]byte, ipHeader)
	if ethertype == unix.ETH_P_IP {
		ip[0], ip[9] = 0x40|byte(ipHeader/4), unix.IPPROTO_TCP
	} else {
		ip[6] = unix.IPPROTO_TCP
	}
	return append(append(f, ip...), tcp...)
}

func TestSegmentsAreFoundAndCounted(t *testing.T) {
	header := func(flags byte, options ...byte) []byte {
		h := make([]byte, 20, 60)
		h[12], h[13] = byte(20+len(options))<<2, flags
		return append(h, options...)
	}
	var s sights
	for _, f := range [][]byte{
		frame(unix.ETH_P_IP, 20, header(0x02, 69, 3, 0x23, 0)),
		frame(unix.ETH_P_IP, 24, header(0x12, 69, 3, 0x23, 0)),
		frame(unix.ETH_P_IPV6, 40, header(0x02, 2, 4, 5, 180)),
		frame(unix.ETH_P_IPV6, 40, append(header(0x10, 69, 2, 1, 1), "HTTP/1.1 200 OK "+marker...)),
	} {
		_, _, segment := tcpSegment(f)
		if segment == nil {
			t.Fatalf("no segment in %x", f)
		}
		s.add(segment)
		for n := range f[:len(f)-len(segment)+20] {
			if _, _, cut := tcpSegment(f[:n]); cut != nil {
				t.Errorf("a segment in the first %d bytes of %x", n, f)
			}
		}
	}
	want := sights{syn: 2, synENO: 1, synACK: 1, synACKENO: 1, otherENO: 1, bytes: len("HTTP/1.1 200 OK " + marker), markers: 1, http: 1}
	if s != want {
		t.Errorf("%+v, want %+v", s, want)
	}
}

func TestDataHasTheMarkerInEveryPage(t *testing.T) {
	var b bytes.Buffer
	if err := writeData(&b); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(b.String(), marker); b.Len() != dataSize || got != dataSize/pageSize {
		t.Errorf("%d bytes with %d markers, want %d with %d", b.Len(), got, dataSize, dataSize/pageSize)
	}
}
