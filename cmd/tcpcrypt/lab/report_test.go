package lab

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

// ptr is for the fields of control.Conn that may be null.
func ptr(s string) *string { return &s }

// testHosts are a, b and c, without namespaces.
func testHosts() []*Host {
	var hosts []*Host
	for i, name := range []string{"a", "b", "c"} {
		hosts = append(hosts, &Host{options: HostOptions{Name: name, Plain: name == "c"}, link: newLink(i+1, name)})
	}
	return hosts
}

func encryptedEnd(host string, id uint64, direction, local, remote, session string, sent, received uint64) End {
	return End{Host: host, Conn: control.Conn{
		ID: id, Direction: direction, Local: local, Remote: remote, State: "closed", Encrypted: true,
		Role: ptr("A"), TEP: ptr("curve25519"), AEAD: ptr("aes128gcm"), SessionID: &session, BytesSent: sent, BytesReceived: received,
	}}
}

func plainEnd(host string, id uint64, direction, local, remote, reason string, sent, received uint64) End {
	return End{Host: host, Conn: control.Conn{
		ID: id, Direction: direction, Local: local, Remote: remote, State: "closed", Reason: &reason,
		BytesSent: sent, BytesReceived: received,
	}}
}

// views is what the daemons on a and b tell, in no order: five connections from a and
// one that a knows nothing of.
func views() []End {
	one, two, mine, theirs := strings.Repeat("23aa", 16)+"01", strings.Repeat("23bb", 16)+"02", strings.Repeat("23cc", 16)+"03", strings.Repeat("23dd", 16)+"04"
	return []End{
		encryptedEnd("b", 1, "inbound", "10.83.2.2:80", "10.83.1.2:7002", two, 20, 2),
		encryptedEnd("b", 2, "inbound", "10.83.2.2:80", "10.83.1.2:7001", one, 1000000, 78),
		encryptedEnd("a", 1, "outbound", "10.83.1.2:40001", "10.83.2.2:80", one, 78, 1000000),
		encryptedEnd("a", 2, "outbound", "10.83.1.2:40002", "10.83.2.2:80", two, 2, 20),
		plainEnd("a", 3, "outbound", "[fd83:0:0:1::2]:40003", "[fd83:0:0:3::2]:80", "no-eno", 5, 6),
		plainEnd("a", 4, "outbound", "10.83.1.2:40004", "10.83.2.2:443", "stripped", 7, 8),
		plainEnd("b", 3, "inbound", "10.83.2.2:443", "10.83.1.2:9999", "no-eno", 8, 7),
		encryptedEnd("a", 5, "outbound", "10.83.1.2:40005", "10.83.2.2:22", mine, 9, 9),
		encryptedEnd("b", 4, "inbound", "10.83.2.2:22", "10.83.1.2:40005", theirs, 9, 9),
		plainEnd("b", 5, "inbound", "[fd83:0:0:2::2]:80", "[fd83:0:0:3::2]:50000", "no-eno", 3, 1),
	}
}

func TestTableOfConnections(t *testing.T) {
	r := &Report{
		Hosts:       []HostReport{{Name: "a"}, {Name: "b"}, {Name: "c", Plain: true}},
		Connections: join(testHosts(), views()),
		Captures:    []Capture{{Host: "a", File: "d/a.pcapng", Packets: 12}, {Host: "b", File: "d/b.pcapng", Packets: 1, Lost: 3}},
	}
	want := `tcpcrypt lab: 6 connections
FROM         TO         ENCRYPTED                   SESSION ID         ENDS         SENT  RECEIVED
a:40001      b:80       yes: curve25519 aes128gcm   23aa23aa23aa23aa…  both, equal  78    1000000
a:40002      b:80       yes: curve25519 aes128gcm   23bb23bb23bb23bb…  both, equal  2     20
a.ip6:40003  c.ip6:80   no: no-eno                  -                  only a       5     6
a:40004      b:443      no: a stripped, b no-eno    -                  both         7     8
a:40005      b:22       yes: curve25519 aes128gcm   23cc23cc23cc23cc…  IDS DIFFER   9     9
c.ip6:50000  b.ip6:80   no: no-eno                  -                  only b       1     3
capture of a: d/a.pcapng, 12 packets
capture of b: d/b.pcapng, 1 packet, and 3 LOST: it was too fast
`
	want = strings.ReplaceAll(want, "   yes", "  yes")
	if diff := cmp.Diff(columns(want), columns(r.Table())); diff != "" {
		t.Errorf("table (-want +got):\n%s\n%s", diff, r.Table())
	}
}

// columns takes the padding out of a table.
func columns(table string) [][]string {
	var rows [][]string
	for line := range strings.Lines(table) {
		rows = append(rows, strings.Fields(line))
	}
	return rows
}

func TestLongTableIsCutShort(t *testing.T) {
	var ends []End
	for i := range 100 {
		ends = append(ends, plainEnd("a", uint64(i), "outbound", "10.83.1.2:40000", "10.83.3.2:80", "no-eno", 0, 0))
	}
	r := &Report{Hosts: []HostReport{{Name: "a"}}, Connections: join(testHosts(), ends)}
	got := r.Table()
	if lines := strings.Count(got, "\n"); lines != maxRows+3 || !strings.Contains(got, "and 60 more") || !strings.HasPrefix(got, "tcpcrypt lab: 100 connections\n") {
		t.Errorf("%d lines:\n%s", lines, got)
	}
}

func TestJoinedConnectionsAsJSON(t *testing.T) {
	b, err := json.Marshal(join(testHosts(), views()))
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	for i, want := range []any{true, true, nil, nil, false, nil} {
		if all[i]["same_session_ids"] != want {
			t.Errorf("connection %d: same_session_ids %v, want %v", i, all[i]["same_session_ids"], want)
		}
	}
	opened := all[0]["opened"].(map[string]any)
	if opened["host"] != "a" || opened["session_id"] == nil || opened["bytes_received"] != 1e6 {
		t.Errorf("the client's view: %v", opened)
	}
	if all[2]["taken"] != nil || all[5]["opened"] != nil || all[5]["client"] != "c" {
		t.Errorf("ends without a daemon: %v, %v", all[2], all[5])
	}
}
