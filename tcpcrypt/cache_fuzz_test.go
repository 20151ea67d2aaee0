package tcpcrypt

import "testing"

// An openingPair is a connection on its way: the opener's SYN, the answers to it and to
// its copies, and what the opener made of one.
type openingPair struct {
	from, to int // hosts
	active   *Negotiation
	answers  []*Negotiation
	accepted *Negotiation // the answer that the opener got
}

// FuzzCache lets two hosts open to each other in any order, with losses, copies,
// simultaneous opens, eviction and forgetting between. Each byte of script is an event
// and whom it is about. Nobody ever enables a secret or a session ID twice, and where
// both ends of a connection have decided, they agree.
func FuzzCache(f *testing.F) {
	f.Add([]byte{0x00, 0x01, 0x02, 0x03, 0x00, 0x01, 0x02, 0x03})                               // fresh, then resumed
	f.Add([]byte{0x00, 0x01, 0x02, 0x03, 0x00, 0x08, 0x01, 0x11, 0x02, 0x12, 0x03, 0x13})       // both directions at once
	f.Add([]byte{0x00, 0x01, 0x02, 0x03, 0x00, 0x01, 0x01, 0x02, 0x03})                         // a copy of the SYN
	f.Add([]byte{0x00, 0x01, 0x02, 0x03, 0x00, 0x00, 0x00, 0x21, 0x01, 0x22, 0x02, 0x23, 0x03}) // out of order
	f.Add([]byte{0x06, 0x06, 0x0e, 0x00, 0x01, 0x02, 0x03})                                     // simultaneous opens
	f.Add([]byte{0x00, 0x01, 0x02, 0x03, 0x00, 0x05, 0x01, 0x02, 0x03, 0x0d, 0x00, 0x01, 0x02, 0x03})
	f.Add([]byte{0x00, 0x01, 0x02, 0x03, 0x00, 0x04, 0x00, 0x04, 0x00, 0x01, 0x02, 0x03, 0x07, 0x08, 0x01, 0x02, 0x03})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 120 {
			return
		}
		hosts := twoHosts(t, CacheOptions{Entries: 5, PerPeer: 3})
		var open []*openingPair
		for _, b := range script {
			event, who, which := b&7, int(b>>3&1), int(b>>4)
			if event == 0 {
				n := hosts[who].open(t, hosts[1-who], Options{})
				n.SYNOption(40)
				open = append(open, &openingPair{from: who, to: 1 - who, active: n})
				continue
			}
			switch event {
			case 5:
				hosts[who].cache.Flush(hosts[1-who].addr.Addr())
				continue
			case 6:
				crossed(t, hosts, who, which&1 == 1)
				continue
			case 7:
				if all := hosts[who].cache.Sessions(); len(all) > 0 {
					hosts[who].cache.Drop(all[which%len(all)].ID)
				}
				continue
			}
			if len(open) == 0 {
				continue
			}
			at := which % len(open)
			if o := open[at]; o.event(t, hosts, event) {
				o.end()
				open = append(open[:at], open[at+1:]...)
			}
		}
		for _, o := range open {
			o.end()
		}
		for _, h := range hosts {
			checkCache(t, h.cache)
		}
	})
}

// event lets one thing happen to o, and reports whether that was its last.
func (o *openingPair) event(t *testing.T, hosts [2]*host, event byte) (over bool) {
	t.Helper()
	switch event {
	case 1: // the SYN arrives, perhaps once more
		p := hosts[o.to].answer(t, Options{})
		p.ReceiveSYN(area(o.active.SYNOption(40)))
		p.SYNOption(40)
		o.answers = append(o.answers, p)
	case 2: // the latest answer arrives
		if o.accepted == nil && len(o.answers) > 0 {
			o.accepted = o.answers[len(o.answers)-1]
			o.active.ReceiveACK(area(o.accepted.SYNOption(40)), true)
		}
	case 3: // the last ACK arrives
		if o.accepted == nil {
			return false
		}
		o.accepted.ReceiveACK(area(NonSYNOption()), false)
		finish(t, [2]*host{hosts[o.from], hosts[o.to]}, [2]*Negotiation{o.active, o.accepted}, [2]bool{true, false})
		return true
	case 4: // it dies
		return true
	}
	return false
}

func (o *openingPair) end() {
	o.active.Wipe()
	for _, p := range o.answers {
		p.Wipe()
	}
}

// crossed is a simultaneous open, in which host b plays B.
func crossed(t *testing.T, hosts [2]*host, b int, ack bool) {
	t.Helper()
	var n [2]*Negotiation
	for i, h := range hosts {
		n[i] = h.open(t, hosts[1-i], Options{PassiveRole: i == b})
	}
	syns := [2][]byte{area(n[0].SYNOption(40)), area(n[1].SYNOption(40))}
	for i := range n {
		n[i].ReceiveSYN(syns[1-i])
	}
	for i := range n {
		if ack {
			n[i].ReceiveACK(area(NonSYNOption()), false)
		} else {
			n[i].ReceiveACK(syns[1-i], true)
		}
	}
	finish(t, hosts, n, [2]bool{true, true})
	n[0].Wipe()
	n[1].Wipe()
}
