package tcptest

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// A Direction is which way a packet goes.
type Direction int

// The two ways.
const (
	AtoB Direction = iota
	BtoA
)

func (d Direction) String() string { return [...]string{"A>B", "B>A"}[d] }

// A Packet is a TCP packet on its way.
type Packet struct {
	Dir   Direction
	Proto tcpip.NetworkProtocolNumber
	IP    []byte // all of it
}

// A Hook is the element in the path. It returns what to deliver, in order; nil drops
// the packet. It may change it, and must call Fix then. It is called with one packet
// at a time.
type Hook func(p *Packet) []*Packet

type path struct {
	mu    sync.Mutex
	hook  Hook
	trace bool
	seen  []*Packet
	news  chan struct{} // closed when seen grows
}

// SetHook puts an element into the path; nil takes it out.
func (p *Pair) SetHook(h Hook) {
	p.path.mu.Lock()
	defer p.path.mu.Unlock()
	p.path.hook = h
}

// Trace starts recording packets as they were sent, before the hook.
func (p *Pair) Trace() {
	p.path.mu.Lock()
	defer p.path.mu.Unlock()
	p.path.trace = true
}

// Packets returns what was recorded so far.
func (p *Pair) Packets() []*Packet {
	p.path.mu.Lock()
	defer p.path.mu.Unlock()
	return slices.Clone(p.path.seen)
}

// Await waits for a recorded packet, past or coming, that match accepts, and returns it.
func (p *Pair) Await(match func(*Packet) bool) *Packet {
	p.tb.Helper()
	timeout := time.NewTimer(Patience)
	defer timeout.Stop()
	for from := 0; ; {
		p.path.mu.Lock()
		seen := p.path.seen[from:]
		from = len(p.path.seen)
		if p.path.news == nil {
			p.path.news = make(chan struct{})
		}
		news := p.path.news
		p.path.mu.Unlock()
		if i := slices.IndexFunc(seen, match); i >= 0 {
			return seen[i]
		}
		select {
		case <-news:
		case <-timeout.C:
			p.tb.Fatal(errPatience)
		}
	}
}

func (p *path) active() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hook != nil || p.trace
}

func (p *path) process(d Direction, proto tcpip.NetworkProtocolNumber, raw []byte) []*Packet {
	p.mu.Lock()
	defer p.mu.Unlock()
	pk := &Packet{Dir: d, Proto: proto, IP: raw}
	if pk.TCP() == nil {
		return []*Packet{pk} // neighbour discovery and the like
	}
	if p.trace {
		p.seen = append(p.seen, pk.Clone())
		if p.news != nil {
			close(p.news)
			p.news = nil
		}
	}
	if p.hook == nil {
		return []*Packet{pk}
	}
	return p.hook(pk)
}

// Clone returns a copy.
func (p *Packet) Clone() *Packet {
	c := *p
	c.IP = slices.Clone(p.IP)
	return &c
}

func (p *Packet) ipLen() int {
	if p.Proto == header.IPv6ProtocolNumber {
		return header.IPv6MinimumSize
	}
	return int(header.IPv4(p.IP).HeaderLength())
}

// TCP returns the TCP header and what follows; nil if it is not TCP.
func (p *Packet) TCP() header.TCP {
	if p.Proto == header.IPv6ProtocolNumber {
		if header.IPv6(p.IP).NextHeader() != uint8(header.TCPProtocolNumber) {
			return nil
		}
	} else if header.IPv4(p.IP).TransportProtocol() != header.TCPProtocolNumber {
		return nil
	}
	return header.TCP(p.IP[p.ipLen():])
}

// Payload returns the bytes of the stream, aliasing the packet.
func (p *Packet) Payload() []byte { return p.TCP()[p.TCP().DataOffset():] }

// Flags says whether all the flags of f are set.
func (p *Packet) Flags(f header.TCPFlags) bool { return p.TCP().Flags().Contains(f) }

// IsSYN says whether it is a SYN or SYN-ACK.
func (p *Packet) IsSYN() bool { return p.Flags(header.TCPFlagSyn) }

// Options returns the raw option area.
func (p *Packet) Options() []byte {
	t := p.TCP()
	return t[header.TCPMinimumSize:t.DataOffset()]
}

// Option returns the whole option of a kind, nil if there is none.
func (p *Packet) Option(kind byte) []byte {
	from, to := findOption(p.Options(), kind)
	if from < 0 {
		return nil
	}
	return p.Options()[from:to]
}

func findOption(o []byte, kind byte) (from, to int) {
	for i := 0; i < len(o); {
		switch {
		case o[i] == 0:
			return -1, -1
		case o[i] == 1:
			i++
		case i+1 >= len(o) || o[i+1] < 2 || i+int(o[i+1]) > len(o):
			return -1, -1
		case o[i] == kind:
			return i, i + int(o[i+1])
		default:
			i += int(o[i+1])
		}
	}
	return -1, -1
}

// Strip turns an option into padding, and says whether it was there.
func (p *Packet) Strip(kind byte) bool {
	from, to := findOption(p.Options(), kind)
	if from < 0 {
		return false
	}
	for i := from; i < to; i++ {
		p.Options()[i] = 1
	}
	p.Fix()
	return true
}

// SetPayload replaces the payload.
func (p *Packet) SetPayload(b []byte) {
	n := p.ipLen() + int(p.TCP().DataOffset())
	p.IP = append(slices.Clone(p.IP[:n]), b...)
	p.Fix()
}

// SetOptions replaces the option area, whose length must be a multiple of 4.
func (p *Packet) SetOptions(o []byte) {
	payload := slices.Clone(p.Payload())
	n := p.ipLen() + header.TCPMinimumSize
	p.IP = append(append(slices.Clone(p.IP[:n]), o...), payload...)
	p.TCP().SetDataOffset(uint8(header.TCPMinimumSize + len(o)))
	p.Fix()
}

// Fix computes lengths and checksums anew.
func (p *Packet) Fix() {
	n := p.ipLen()
	var src, dst tcpip.Address
	if p.Proto == header.IPv6ProtocolNumber {
		ip := header.IPv6(p.IP)
		ip.SetPayloadLength(uint16(len(p.IP) - n))
		src, dst = ip.SourceAddress(), ip.DestinationAddress()
	} else {
		ip := header.IPv4(p.IP)
		ip.SetTotalLength(uint16(len(p.IP)))
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
		src, dst = ip.SourceAddress(), ip.DestinationAddress()
	}
	t := p.TCP()
	t.SetChecksum(0)
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, uint16(len(t)))
	t.SetChecksum(^checksum.Checksum(t, sum))
}

// Split cuts the payload into packets of at most size bytes.
func (p *Packet) Split(size int) []*Packet {
	payload := p.Payload()
	if len(payload) <= size || p.IsSYN() {
		return []*Packet{p}
	}
	var out []*Packet
	for off := 0; off < len(payload); off += size {
		c := p.Clone()
		end := min(off+size, len(payload))
		c.TCP().SetSequenceNumber(p.TCP().SequenceNumber() + uint32(off))
		if end < len(payload) {
			c.TCP().SetFlags(uint8(p.TCP().Flags() &^ (header.TCPFlagFin | header.TCPFlagPsh)))
		}
		c.SetPayload(payload[off:end])
		out = append(out, c)
	}
	return out
}

func (p *Packet) String() string {
	t := p.TCP()
	return fmt.Sprintf("%s %s seq=%d ack=%d len=%d opts=%x", p.Dir, t.Flags(), t.SequenceNumber(), t.AckNumber(), len(p.Payload()), p.Options())
}
