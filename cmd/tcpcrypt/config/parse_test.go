package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tcpcrypt/tcpcrypt/routing"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

const whole = `
[interface]
name   = "tc1"
host4  = "10.9.9.1"
stack4 = "10.9.9.2"
host6  = "fd00::1"
stack6 = "fd00::2"
mtu    = 9000
on_exit = "open"

[[outbound]]
to     = ["10.20.0.0/16", "192.0.2.7", "2001:db8::/32"]
except = ["10.20.3.0/24"]
ports  = ["80", "9000-9100", 443]
policy = "require"
resumption = true

[[outbound]]
to = ["0.0.0.0/0"]

[[inbound]]
ports   = ["80"]
policy  = "require"
deliver = "transparent"
proxy_protocol = false
resumption = true

[[inbound]]
ports = ["81"]

[crypto]
teps       = ["p521", "curve448"]
aeads      = ["aes256gcm"]
resumption = false
nonce      = 3
sessions   = 10
session_age = "90s"
rekey_bytes  = 1000
rekey_frames = 0x1_0000_0000
rekey_after  = "1m30s"
keepalive    = "2h"
application_aware = true
require_application_aware = true
`

func TestEveryKey(t *testing.T) {
	c, problems := Parse("f", []byte(whole))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	want := Interface{
		Name: "tc1", MTU: 9000,
		Host4: netip.MustParseAddr("10.9.9.1"), Stack4: netip.MustParseAddr("10.9.9.2"),
		Host6: netip.MustParseAddr("fd00::1"), Stack6: netip.MustParseAddr("fd00::2"),
	}
	if c.Interface != want {
		t.Errorf("interface %+v, want %+v", c.Interface, want)
	}
	crypto := Crypto{
		TEPs: []tcpcrypt.TEP{tcpcrypt.P521, tcpcrypt.Curve448}, AEADs: []tcpcrypt.AEAD{tcpcrypt.AES256GCM},
		Nonce: 3, Sessions: 10, SessionAge: 90 * time.Second,
		RekeyBytes: 1000, RekeyFrames: 1 << 32, RekeyAfter: 90 * time.Second, KeepAlive: 2 * time.Hour,
		ApplicationAware: true, RequireApplicationAware: true,
	}
	if !reflect.DeepEqual(c.Crypto, crypto) {
		t.Errorf("crypto %+v, want %+v", c.Crypto, crypto)
	}
	o := c.Outbound[0]
	if got := fmt.Sprint(o.To, o.Except, o.Ports, o.Policy); got != "[10.20.0.0/16 192.0.2.7/32 2001:db8::/32] [10.20.3.0/24] [80 9000-9100 443] require" || !o.Resumption {
		t.Errorf("outbound[0] is %s", got)
	}
	if o := c.Outbound[1]; o.Policy != routing.Opportunistic || o.Ports != nil || o.Resumption {
		t.Errorf("outbound[1] is %+v, want opportunistic, all ports, and resumption as in [crypto]", o)
	}
	if len(c.Inbound) != 2 {
		t.Fatalf("inbound is %+v", c.Inbound)
	}
	if in := c.Inbound[0]; in.Policy != routing.Require || fmt.Sprint(in.Ports) != "[80]" || !in.Resumption {
		t.Errorf("inbound[0] is %+v", in)
	}
	if c.Inbound[1].Resumption {
		t.Error("inbound[1] resumes, want as in [crypto]")
	}
	if r := c.Routing(); len(r.Outbound) != 2 || len(r.Inbound) != 2 || fmt.Sprint(r.Outbound[0].Ports, r.Inbound[1].Ports) != "[80 9000-9100 443] [81]" {
		t.Errorf("routing gets %+v", r)
	}
}

func TestDefaults(t *testing.T) {
	c, problems := Parse("f", []byte("[[inbound]]\nports = [\"1\"]\n"))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	d := Default()
	if !c.Inbound[0].Resumption {
		t.Error("a rule that says nothing does not resume")
	}
	want := Crypto{
		TEPs: tcpcrypt.DefaultTEPs(), AEADs: tcpcrypt.DefaultAEADs(), Resumption: true, Nonce: 8,
		Sessions: 4096, SessionAge: time.Hour, RekeyAfter: time.Hour, KeepAlive: 5 * time.Minute,
	}
	if !reflect.DeepEqual(d.Crypto, want) {
		t.Errorf("crypto %+v, want %+v", d.Crypto, want)
	}
	if c.Interface != d.Interface || fmt.Sprint(c.Crypto) != fmt.Sprint(d.Crypto) {
		t.Errorf("%+v, want the defaults %+v", c, d)
	}
}

// TestProblems: each bad document gives just these problems, with lines and keys.
func TestProblems(t *testing.T) {
	const rule = "[[inbound]]\nports = ['1']\n"
	for name, tc := range map[string]struct {
		doc  string
		want []string // FILE:LINE: key: and a part of the text, between | and |
	}{
		"syntax":                {"[[inbound]]\nports = \n", []string{"f:2: |at start of value|"}},
		"not UTF-8":             {rule + "# \xff\n", []string{"f:3: |not UTF-8|"}},
		"table twice":           {rule + "[crypto]\n[crypto]\n", []string{"f:4: crypto: |there twice|"}},
		"key twice":             {rule + "[interface] # the link\nname = 'x'\n\nname = 'y'\n", []string{"f:6: interface.name: |there twice|"}},
		"key twice at the top":  {"a = 1\na = 2\n", []string{"f:2: a: |there twice|"}},
		"no value":              {rule + "policy\n", []string{"f:3: ||"}},
		"NUL":                   {rule + "\x00", []string{"f:3: ||"}},
		"nothing to do":         {"[crypto]\nnonce = 1\n", []string{"f:1: |nothing to do|"}},
		"unknown table":         {rule + "[cypto]\n", []string{"f:3: cypto: |did you mean crypto?|"}},
		"unknown key":           {rule + "[interface]\nnam = 'x'\n", []string{"f:4: interface.nam: |did you mean name?|"}},
		"unknown key in rule":   {"[[inbound]]\nports = ['1']\ncolour = 1\n", []string{"f:3: inbound[0].colour: |unknown key; one of: ports, policy|"}},
		"quoted unknown key":    {rule + "'a.b' = 1\n", []string{"f:3: inbound[0].\"a.b\": |unknown key|"}},
		"wrong type":            {rule + "[interface]\nmtu = '9000'\nname = 3\n", []string{"f:4: interface.mtu: |want a whole number, not a string|", "f:5: interface.name: |want a string, not a number|"}},
		"table is no table":     {"crypto = 3\n" + rule, []string{"f:1: crypto: |want a table|"}},
		"rules are no rules":    {"outbound = 3\n" + rule, []string{"f:1: outbound: |[[outbound]]|"}},
		"a rule is none":        {"inbound = [3]\n", []string{"f:1: inbound[0]: |want a rule|"}},
		"bad name":              {rule + "[interface]\nname = 'a/b'\n", []string{"f:4: interface.name: |cannot name a device|"}},
		"long name":             {rule + "[interface]\nname = '0123456789abcdef'\n", []string{"f:4: interface.name: |at most 15|"}},
		"small mtu":             {rule + "[interface]\nmtu = 500\n", []string{"f:4: interface.mtu: |1280 to 65535|"}},
		"address with length":   {rule + "[interface]\nhost4 = '10.0.0.1/30'\n", []string{"f:4: interface.host4: |without prefix length|"}},
		"wrong family":          {rule + "[interface]\nhost6 = '10.0.0.1'\n", []string{"f:4: interface.host6: |not an IPv6 address|"}},
		"loopback address":      {rule + "[interface]\nhost4 = '127.0.0.1'\n", []string{"f:4: interface.host4: |cannot be|"}},
		"broadcast address":     {rule + "[interface]\nhost4 = '255.255.255.255'\n", []string{"f:4: interface.host4: |cannot be|"}},
		"mapped link address":   {rule + "[interface]\nhost6 = '::ffff:10.0.0.1'\n", []string{"f:4: interface.host6: ||"}},
		"same address":          {rule + "[interface]\nstack4 = '198.18.0.1'\n", []string{"f:4: interface.stack4: |same address|"}},
		"on_exit later":         {rule + "[interface]\non_exit = 'closed'\n", []string{"f:4: interface.on_exit: |not there yet|"}},
		"on_exit unknown":       {rule + "[interface]\non_exit = 'ajar'\n", []string{"f:4: interface.on_exit: |unknown value|"}},
		"no to":                 {"[[outbound]]\nports = ['1']\n", []string{"f:1: outbound[0].to: |is missing|"}},
		"empty to":              {"[[outbound]]\nto = []\n", []string{"f:2: outbound[0].to: |missing|"}},
		"host bits":             {"[[outbound]]\nto = ['10.0.0.0/8',\n '10.1.2.3/8']\n", []string{"f:3: outbound[0].to[1]: |want \"10.0.0.0/8\"|"}},
		"no prefix":             {"[[outbound]]\nto = ['example.org']\n", []string{"f:2: outbound[0].to[0]: |neither a prefix nor an address|"}},
		"mapped address":        {"[[outbound]]\nto = ['::ffff:10.0.0.1']\n", []string{"f:2: outbound[0].to[0]: |want \"10.0.0.1\"|"}},
		"zone":                  {"[[outbound]]\nto = ['fe80::1%eth0']\n", []string{"f:2: outbound[0].to[0]: |neither|"}},
		"bad except":            {"[[outbound]]\nto = ['10.0.0.0/8']\nexcept = ['x']\n", []string{"f:3: outbound[0].except[0]: |neither|"}},
		"unknown policy":        {"[[outbound]]\nto = ['10.0.0.0/8']\n\npolicy = 'requir'\n", []string{"f:4: outbound[0].policy: |one of: opportunistic, require, bypass|"}},
		"port 0":                {"[[inbound]]\nports = ['0']\n", []string{"f:2: inbound[0].ports[0]: |from 1 to 65535|"}},
		"port too large":        {"[[inbound]]\nports = ['65536', 70000]\n", []string{"f:2: inbound[0].ports[0]: ||", "f:2: inbound[0].ports[1]: ||"}},
		"reversed range":        {"[[inbound]]\nports = ['90-80']\n", []string{"f:2: inbound[0].ports[0]: |smaller first|"}},
		"port of another type":  {"[[inbound]]\nports = [1.5]\n", []string{"f:2: inbound[0].ports[0]: |not a fraction|"}},
		"ports is no list":      {"[[inbound]]\nports = '80'\n", []string{"f:2: inbound[0].ports: |want a list|"}},
		"no inbound ports":      {"[[inbound]]\npolicy = 'require'\n", []string{"f:1: inbound[0].ports: |missing|"}},
		"empty outbound ports":  {"[[outbound]]\nto = ['10.0.0.0/8']\nports = []\n", []string{"f:3: outbound[0].ports: |leave it out for all|"}},
		"delivery later":        {rule + "deliver = 'loopback'\nproxy_protocol = true\n", []string{"f:3: inbound[0].deliver: |not there yet|", "f:4: inbound[0].proxy_protocol: |not there yet|"}},
		"delivery unknown":      {rule + "deliver = 'pigeon'\n", []string{"f:3: inbound[0].deliver: |unknown way|"}},
		"unknown tep":           {rule + "[crypto]\nteps = ['p384']\n", []string{"f:4: crypto.teps[0]: |one of: curve25519, p256, p521, curve448|"}},
		"tep twice":             {rule + "[crypto]\nteps = ['p256', 'p256']\n", []string{"f:4: crypto.teps[1]: |twice|"}},
		"no aeads":              {rule + "[crypto]\naeads = []\n", []string{"f:4: crypto.aeads: |is empty|"}},
		"aead of another type":  {rule + "[crypto]\naeads = [3]\n", []string{"f:4: crypto.aeads[0]: |want a string, not a number|"}},
		"bad nonce":             {rule + "[crypto]\nnonce = 9\nresumption = 1\n", []string{"f:4: crypto.nonce: |0 to 8|", "f:5: crypto.resumption: |want true or false|"}},
		"negative nonce":        {rule + "[crypto]\nnonce = -1\n", []string{"f:4: crypto.nonce: |0 to 8|"}},
		"no sessions":           {rule + "[crypto]\nsessions = 0\n", []string{"f:4: crypto.sessions: |want 1 to 1048576, or resumption = false|"}},
		"too many sessions":     {rule + "[crypto]\nsessions = 1048577\n", []string{"f:4: crypto.sessions: |out of range|"}},
		"age is a number":       {rule + "[crypto]\nsession_age = 3600\n", []string{"f:4: crypto.session_age: |want a length of time such as \"90s\", \"5m\" or \"1h\", not a number|"}},
		"age without unit":      {rule + "[crypto]\nsession_age = '3600'\n", []string{"f:4: crypto.session_age: |\"3600\" is not a length of time; want one such|"}},
		"short age":             {rule + "[crypto]\nsession_age = '999ms'\n", []string{"f:4: crypto.session_age: |\"999ms\" is out of range; want \"1s\" to \"24h\", or resumption = false|"}},
		"long age":              {rule + "[crypto]\nsession_age = '24h0m1s'\n", []string{"f:4: crypto.session_age: |out of range|"}},
		"rekey bytes":           {rule + "[crypto]\nrekey_bytes = 0\n", []string{"f:4: crypto.rekey_bytes: |want 1 to 68719476736, or leave it out|"}},
		"too many rekey bytes":  {rule + "[crypto]\nrekey_bytes = 68719476737\n", []string{"f:4: crypto.rekey_bytes: |out of range|"}},
		"rekey frames":          {rule + "[crypto]\nrekey_frames = 0\n", []string{"f:4: crypto.rekey_frames: |want 1 to 4294967296, or leave it out|"}},
		"too many rekey frames": {rule + "[crypto]\nrekey_frames = 4294967297\n", []string{"f:4: crypto.rekey_frames: |out of range|"}},
		"rekey fraction":        {rule + "[crypto]\nrekey_bytes = 1e9\n", []string{"f:4: crypto.rekey_bytes: |whole number, not a fraction|"}},
		"rekey at once":         {rule + "[crypto]\nrekey_after = '0s'\n", []string{"f:4: crypto.rekey_after: |want \"1s\" to \"1h\"|"}},
		"rekey late":            {rule + "[crypto]\nrekey_after = '1h1ns'\n", []string{"f:4: crypto.rekey_after: |out of range|"}},
		"keepalive off?":        {rule + "[crypto]\nkeepalive = false\n", []string{"f:4: crypto.keepalive: |length of time|"}},
		"keepalive negative":    {rule + "[crypto]\nkeepalive = '-1s'\n", []string{"f:4: crypto.keepalive: |\"-1s\" is out of range; want \"1s\" to \"24h\", or \"0s\" to turn it off|"}},
		"keepalive short":       {rule + "[crypto]\nkeepalive = '500ms'\n", []string{"f:4: crypto.keepalive: |out of range|"}},
		"keepalive long":        {rule + "[crypto]\nkeepalive = '25h'\n", []string{"f:4: crypto.keepalive: |out of range|"}},
		"aware of what":         {rule + "[crypto]\napplication_aware = 'yes'\nrequire_application_aware = 1\n", []string{"f:4: crypto.application_aware: |want true or false|", "f:5: crypto.require_application_aware: |want true or false|"}},
		"rule's resumption":     {"[[outbound]]\nto = ['10.0.0.0/8']\nresumption = 'no'\n[[inbound]]\nports = ['1']\nresumption = 0\n", []string{"f:3: outbound[0].resumption: |want true or false, not a string|", "f:6: inbound[0].resumption: |want true or false|"}},
		"misspelt":              {rule + "[crypto]\nsession_agr = '1h'\nkeep_alive = '1h'\n", []string{"f:4: crypto.session_agr: |did you mean session_age?|", "f:5: crypto.keep_alive: |did you mean keepalive?|"}},
		"second rule":           {rule + "\n[[inbound]]\nports = ['x']\n", []string{"f:5: inbound[1].ports[0]: ||"}},
		"dotted and inline":     {"interface.mtu = 3\noutbound = [{to = ['x']}]\n", []string{"f:1: interface.mtu: ||", "f:2: outbound[0].to[0]: ||"}},
		"many problems at once": {"[[outbound]]\nto = ['x']\npolicy = 'y'\nports = ['z']\n", []string{"f:2: outbound[0].to[0]: ||", "f:3: outbound[0].policy: ||", "f:4: outbound[0].ports[0]: ||"}},
	} {
		t.Run(name, func(t *testing.T) {
			c, problems := Parse("f", []byte(tc.doc))
			if c != nil {
				t.Error("accepted")
			}
			if len(problems) != len(tc.want) {
				t.Fatalf("problems %q, want %d", problems, len(tc.want))
			}
			for i, p := range problems {
				head, rest, _ := strings.Cut(tc.want[i], "|")
				part := strings.TrimSuffix(rest, "|")
				if got := p.String(); !strings.HasPrefix(got, head) || !strings.Contains(got, part) {
					t.Errorf("problem %q, want %q with %q", got, head, part)
				}
			}
		})
	}
}

// TestMark: a file from an editor that begins every file with a byte order mark.
func TestMark(t *testing.T) {
	if _, problems := Parse("f", []byte("\ufeff[[inbound]]\nports = ['1']\n")); len(problems) > 0 {
		t.Error(problems)
	}
	_, problems := Parse("f", []byte("\ufeff[[inbound]]\nports = ['x']\n"))
	if len(problems) != 1 || problems[0].Line != 2 {
		t.Errorf("problems %v, want one in line 2", problems)
	}
}

// TestTooManyRules: what only the whole can tell has a remedy, too.
func TestTooManyRules(t *testing.T) {
	doc := strings.Repeat("[[outbound]]\nto = ['10.0.0.1']\n", 10000)
	if _, problems := Parse("f", []byte(doc)); len(problems) != 1 || !strings.Contains(problems[0].Text, "; join rules") {
		t.Errorf("problems %v", problems)
	}
}

// TestKeepAliveOff: no time at all is no keep-alive, however it is written.
func TestKeepAliveOff(t *testing.T) {
	for _, off := range []string{"0s", "0", "0h0m"} {
		c, problems := Parse("f", []byte("[[inbound]]\nports = ['1']\n[crypto]\nkeepalive = '"+off+"'\n"))
		if len(problems) > 0 || c.Crypto.KeepAlive != 0 {
			t.Errorf("keepalive %q: %+v, %v", off, c, problems)
		}
	}
}

// TestResumes: any rule that encrypts and resumes counts, and no other.
func TestResumes(t *testing.T) {
	for doc, want := range map[string]bool{
		"[[inbound]]\nports = ['1']\n":                                                true,
		"[[inbound]]\nports = ['1']\nresumption = false\n":                            false,
		"[[inbound]]\nports = ['1']\npolicy = 'bypass'\n":                             false,
		"[[outbound]]\nto = ['10.0.0.0/8']\n":                                         true,
		"[[outbound]]\nto = ['10.0.0.0/8']\npolicy = 'bypass'\n":                      false,
		"[[outbound]]\nto = ['10.0.0.0/8']\nresumption = false\n":                     false,
		"[crypto]\nresumption = false\n[[outbound]]\nto = ['10.0.0.0/8']\n":           false,
		"[crypto]\nresumption = false\n[[inbound]]\nports = ['1']\nresumption = true": true,
	} {
		c, problems := Parse("f", []byte(doc))
		if len(problems) > 0 || c.Resumes() != want {
			t.Errorf("%q: problems %v, want resumes %v", doc, problems, want)
		}
	}
}

// TestEnds: both ends of each range are right.
func TestEnds(t *testing.T) {
	for _, doc := range []string{
		"sessions = 1\nsession_age = '1s'\nrekey_bytes = 1\nrekey_frames = 1\nrekey_after = '1s'\nkeepalive = '1s'\nnonce = 0\n",
		"sessions = 1048576\nsession_age = '24h'\nrekey_bytes = 68719476736\nrekey_frames = 4294967296\nrekey_after = '60m'\nkeepalive = '24h'\nnonce = 8\n",
	} {
		if _, problems := Parse("f", []byte("[[inbound]]\nports = ['1']\n[crypto]\n"+doc)); len(problems) > 0 {
			t.Error(problems)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte("[[outbound]]\nto = ['10.0.0.0/8',]\n[outbound.x]\n"))
	f.Add([]byte("a.b.c = [[1, {x = 2}], 'y']"))
	f.Add([]byte("[crypto]\nkeepalive = '-2562047h47m16.854775808s'\nrekey_bytes = -9223372036854775808\n"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		c, problems := Parse("f", doc)
		if (c == nil) != (len(problems) > 0) {
			t.Fatalf("config %v with problems %v", c, problems)
		}
		lines := 1 + strings.Count(string(doc), "\n")
		for _, p := range problems {
			if p.Line < 1 || p.Line > lines || p.Text == "" {
				t.Fatalf("problem %+v in %d lines", p, lines)
			}
		}
	})
}
