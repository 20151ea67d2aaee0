package tcpcrypt

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

const (
	undecided = "undecided"
	encrypted = "encrypted"
)

// stateEvents are what can happen to a Negotiation. The peer's SYN has the other role.
var stateEvents = map[string]func(*Negotiation){
	"send": func(n *Negotiation) { n.SYNOption(20) },
	"syn": func(n *Negotiation) {
		if n.active {
			n.ReceiveSYN(area([]byte{69, 4, 1, 0x23}))
		} else {
			n.ReceiveSYN(area([]byte{69, 3, 0x23}))
		}
	},
	"syn bare":    func(n *Negotiation) { n.ReceiveSYN(area()) },
	"synack":      func(n *Negotiation) { n.ReceiveACK(area([]byte{69, 4, 1, 0x23}), true) },
	"synack bare": func(n *Negotiation) { n.ReceiveACK(area(), true) },
	"ack":         func(n *Negotiation) { n.ReceiveACK(area(NonSYNOption()), false) },
	"ack bare":    func(n *Negotiation) { n.ReceiveACK(area(), false) },
	"withdraw":    (*Negotiation).Withdraw,
}

// always is the row of a state that nothing changes.
func always(outcome string) map[string]string {
	row := make(map[string]string)
	for e := range stateEvents {
		row[e] = outcome
	}
	return row
}

// states is RFC 8547, section 4.6, as a table: the way into a state, and what comes of
// each event in it.
var states = []struct {
	name   string
	active bool
	way    string
	next   map[string]string
}{
	{"active, nothing sent", true, "", map[string]string{
		"send": undecided, "syn": undecided, "syn bare": "no-eno", "synack": "no-eno", "synack bare": "no-eno",
		"ack": "no-eno", "ack bare": "no-eno", "withdraw": "fallback"}},
	{"SYN sent", true, "send", map[string]string{
		"send": undecided, "syn": undecided, "syn bare": "no-eno", "synack": encrypted, "synack bare": "no-eno",
		"ack": "stripped", "ack bare": "stripped", "withdraw": "fallback"}},
	{"SYNs crossed", true, "send, syn", map[string]string{
		"send": undecided, "syn": undecided, "syn bare": undecided, "synack": encrypted, "synack bare": "stripped",
		"ack": encrypted, "ack bare": "stripped", "withdraw": "fallback"}},
	{"active, plain", true, "send, synack bare", always("no-eno")},
	{"active, withdrawn", true, "send, withdraw", always("fallback")},
	{"active, encrypted", true, "send, synack", always(encrypted)},
	{"passive, nothing received", false, "", map[string]string{
		"send": "no-eno", "syn": undecided, "syn bare": "no-eno", "synack": "no-eno", "synack bare": "no-eno",
		"ack": "no-eno", "ack bare": "no-eno", "withdraw": "fallback"}},
	{"SYN received", false, "syn", map[string]string{
		"send": undecided, "syn": undecided, "syn bare": undecided, "synack": "limit", "synack bare": "limit",
		"ack": "limit", "ack bare": "limit", "withdraw": "fallback"}},
	{"SYN-ACK sent", false, "syn, send", map[string]string{
		"send": undecided, "syn": undecided, "syn bare": undecided, "synack": encrypted, "synack bare": "stripped",
		"ack": encrypted, "ack bare": "stripped", "withdraw": "fallback"}},
	{"passive, plain", false, "syn bare", always("no-eno")},
	{"passive, encrypted", false, "syn, send, ack", always(encrypted)},
}

func TestEveryEventInEveryState(t *testing.T) {
	for _, s := range states {
		for _, event := range slices.Sorted(maps.Keys(stateEvents)) {
			t.Run(s.name+"/"+event, func(t *testing.T) {
				want, ok := s.next[event]
				if !ok {
					t.Fatal("not in the table")
				}
				n := mustNegotiation(t, Options{}, s.active)
				for e := range strings.SplitSeq(s.way, ", ") {
					if e != "" {
						stateEvents[e](n)
					}
				}
				stateEvents[event](n)
				got := undecided
				if o, ok := n.Outcome(); o.Encrypted {
					got = encrypted
				} else if ok {
					got = string(o.Reason)
				}
				if got != want {
					t.Errorf("%s, want %s", got, want)
				}
			})
		}
	}
}
