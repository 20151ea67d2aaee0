package daemon

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/config"
	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
	"github.com/tcpcrypt/tcpcrypt/routing"
	"github.com/tcpcrypt/tcpcrypt/stack"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// TestOptionsOfRules: every key of [crypto] reaches the connections of every rule, and
// each rule its own.
func TestOptionsOfRules(t *testing.T) {
	c, problems := config.Parse("f", []byte(`
[crypto]
teps = ["p256"]
aeads = ["aes256gcm"]
nonce = 3
sessions = 7
session_age = "2m"
rekey_bytes = 1000
rekey_frames = 10
rekey_after = "3m"
application_aware = true
[[outbound]]
to = ["10.0.0.0/8"]
[[outbound]]
to = ["11.0.0.0/8"]
resumption = false
[[inbound]]
ports = ["80"]
[[inbound]]
ports = ["81"]
resumption = false
`))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	table, err := routing.NewTable(c.Routing())
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{o: Options{Config: c}, table: table}
	want := stack.Rule{Label: "outbound[0]", Options: tcpcrypt.Options{
		TEPs: []tcpcrypt.TEP{tcpcrypt.P256}, AEADs: []tcpcrypt.AEAD{tcpcrypt.AES256GCM}, ApplicationAware: true,
		MaxKeyBytes: 1000, MaxKeyFrames: 10, MaxKeyAge: 3 * time.Minute, ShortNonce: 5,
	}}
	at := netip.MustParseAddrPort("192.0.2.1:1")
	if got := d.outbound(at, netip.MustParseAddrPort("10.0.0.1:80")); !reflect.DeepEqual(got, want) {
		t.Errorf("rule %+v, want %+v", got, want)
	}
	want.Label = "inbound[0]"
	if got, ok := d.inbound(netip.MustParseAddrPort("192.0.2.1:80"), at); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("rule %+v, want %+v", got, want)
	}
	want.NoResumption, want.Label = true, "inbound[1]"
	if got, ok := d.inbound(netip.MustParseAddrPort("192.0.2.1:81"), at); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("rule %+v, want %+v", got, want)
	}
	want.Label = "outbound[1]"
	if got := d.outbound(at, netip.MustParseAddrPort("11.0.0.1:80")); !reflect.DeepEqual(got, want) {
		t.Errorf("rule %+v, want %+v", got, want)
	}
	c.Crypto.ApplicationAware, c.Crypto.RequireApplicationAware = false, true
	if o := d.crypto(); o.ApplicationAware || !o.RequireApplicationAware {
		t.Errorf("application-aware bits %+v", o)
	}
	if got, want := cacheOptions(c.Crypto), (tcpcrypt.CacheOptions{Entries: 7, Age: 2 * time.Minute}); got != want {
		t.Errorf("cache %+v, want %+v", got, want)
	}
}

// TestKeepAlive: the interval is a tenth of the idle time, within bounds.
func TestKeepAlive(t *testing.T) {
	for idle, want := range map[time.Duration]tcp.KeepAlive{
		0:               {Idle: -1},
		time.Second:     {Idle: time.Second, Interval: time.Second, Count: 4},
		time.Minute:     {Idle: time.Minute, Interval: 6 * time.Second, Count: 4},
		5 * time.Minute: {Idle: 5 * time.Minute, Interval: 30 * time.Second, Count: 4},
		24 * time.Hour:  {Idle: 24 * time.Hour, Interval: 30 * time.Second, Count: 4},
	} {
		if got := keepAlive(idle); got != want {
			t.Errorf("%v: %+v, want %+v", idle, got, want)
		}
	}
}

// TestShow: the JSON of an encrypted connection, field by field.
func TestShow(t *testing.T) {
	got := asJSON(t, show(stack.Conn{
		ID: 3, Direction: stack.Inbound, Local: netip.MustParseAddrPort("192.0.2.1:80"), Remote: netip.MustParseAddrPort("[2001:db8::1]:5"),
		State: stack.Open, Encrypted: true, Role: tcpcrypt.RoleB, TEP: tcpcrypt.P521, AEAD: tcpcrypt.ChaCha20Poly1305,
		SessionID: []byte(strings.Repeat("\xab", 33)), Resumed: true, BytesSent: 1, BytesReceived: 2,
		GenerationSent: 4, GenerationReceived: 5, PeerApplicationAware: true,
	}))
	want := `{"id":3,"direction":"inbound","local":"192.0.2.1:80","remote":"[2001:db8::1]:5","state":"open","encrypted":true,"reason":null,` +
		`"role":"B","tep":"p521","aead":"chacha20poly1305","session_id":"` + strings.Repeat("ab", 33) + `","resumed":true,"bytes_sent":1,` +
		`"bytes_received":2,"generation_sent":4,"generation_received":5,"peer_application_aware":true}`
	if got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// TestStopWipesSessions: secrets do not outlive the connections that could use them.
func TestStopWipesSessions(t *testing.T) {
	if !inNetns(t) {
		return
	}
	there := uplink(t)
	echoes(t, there)
	upThere(t, there, "[[inbound]]\nports = ['80']\n")
	r := &record{ready: make(chan struct{})}
	d := newDaemon(options(t, "[[outbound]]\nto = ['10.1.1.0/24']\n", t.TempDir()+"/s", r))
	if err := d.start(t.Context()); err != nil {
		t.Error(err)
	} else {
		dial(t, "10.1.1.2:80")
		(&remote{t, control.Client{Socket: d.o.Socket}}).awaitSessions(1)
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	if s := d.cache.Sessions(); len(s) > 0 {
		t.Errorf("sessions %+v after the stop", s)
	}
}
