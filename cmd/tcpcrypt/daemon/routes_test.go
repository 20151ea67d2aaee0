package daemon

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

// A fake answers with what the tests know, and notes what it was asked to change.
type fake struct{ did string }

func (*fake) list(closed bool) []control.Conn {
	if closed {
		return []control.Conn{{ID: 1, State: "closed"}, {ID: 2}}
	}
	return []control.Conn{{ID: 2}}
}

func (*fake) conn(local, remote netip.AddrPort) (control.Conn, bool) {
	return control.Conn{ID: 2, Local: local.String(), Remote: remote.String()}, local.Port() == 5
}

func (*fake) sessions() []control.Session {
	at := time.Date(2030, 1, 2, 3, 4, 5, 6e6, time.UTC)
	return []control.Session{{ID: 3, Peer: "192.0.2.1:80", OpenedBy: "us", Role: "A", TEP: "p256", AEAD: "aes128gcm", NextIndex: 2,
		Created: at, Expires: at.Add(time.Hour)}}
}

func (*fake) remembered() []control.Remembered {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	return []control.Remembered{{Peer: "[2001:db8::1]:80", Reason: "fallback", Since: at, Until: at.Add(time.Minute)}}
}

func (f *fake) flush(peer netip.Addr) control.Flushed {
	f.did = fmt.Sprint("flush ", peer)
	return control.Flushed{Sessions: 2, Remembered: 1}
}

func (f *fake) rekey(ids []uint64) control.Rekeyed {
	f.did = fmt.Sprint("rekey ", ids)
	return control.Rekeyed{Connections: len(ids)}
}

// TestRoutes: the JSON is what programs rely on, names, order and all; what is wrong is
// refused in words, and changes nothing.
func TestRoutes(t *testing.T) {
	many := strings.Repeat("id=1&", control.MaxRekey+1)
	for _, tc := range []struct {
		ask    string
		status int
		answer string // or a part of it, if the status is not 200
		did    string
	}{
		{"GET /v1/sessions", 200, `[{"id":3,"peer":"192.0.2.1:80","opened_by":"us","role":"A","tep":"p256","aead":"aes128gcm","next_index":2,` +
			`"created":"2030-01-02T03:04:05.006Z","expires":"2030-01-02T04:04:05.006Z"}]`, ""},
		{"GET /v1/remembered", 200, `[{"peer":"[2001:db8::1]:80","reason":"fallback","since":"2030-01-02T03:04:05Z","until":"2030-01-02T03:05:05Z"}]`, ""},
		{"POST /v1/flush", 200, `{"sessions":2,"remembered":1}`, "flush invalid IP"},
		{"POST /v1/flush?peer=192.0.2.1", 200, `{"sessions":2,"remembered":1}`, "flush 192.0.2.1"},
		{"POST /v1/flush?peer=::ffff:192.0.2.1", 200, `{"sessions":2,"remembered":1}`, "flush 192.0.2.1"},
		{"POST /v1/rekey", 200, `{"connections":0}`, "rekey []"},
		{"POST /v1/rekey?id=9&id=7&id=9", 200, `{"connections":2}`, "rekey [7 9]"},

		{"GET /v1/conn?local=192.0.2.1:6&remote=192.0.2.2:80", 404, "no such connection", ""},
		{"GET /v1/conn?local=192.0.2.1:5", 400, "remote: is missing", ""},
		{"GET /v1/conn?remote=192.0.2.1:5", 400, "local: is missing", ""},
		{"GET /v1/conn?local=192.0.2.1&remote=192.0.2.2:80", 400, "local: \"192.0.2.1\" is not an address with port", ""},
		{"GET /v1/conns?closed=perhaps", 400, "closed: want true or false", ""},
		{"GET /v1/conns?close=true", 400, `"close": unknown parameter; want closed`, ""},
		{"GET /v1/sessions?x=1", 400, "no parameters here", ""},
		{"GET /v1/sessions?%zz", 400, "cannot read the query", ""},
		{"GET /v1/flush", 405, "", ""},
		{"GET /v1/rekey", 405, "", ""},
		{"POST /v1/conns", 405, "", ""},
		{"POST /v1/flush?peer=", 400, "is not an address", ""},
		{"POST /v1/flush?peer=192.0.2.1:80", 400, "without port", ""},
		{"POST /v1/flush?per=192.0.2.1", 400, `"per": unknown parameter; want peer`, ""},
		{"POST /v1/flush?peer=192.0.2.1&peer=192.0.2.2", 400, "peer: is there twice", ""},
		{"POST /v1/flush body", 400, "takes no body", ""},
		{"POST /v1/rekey?id=", 400, "is not the id of a connection", ""},
		{"POST /v1/rekey?id=-1", 400, "is not the id of a connection", ""},
		{"POST /v1/rekey?" + strings.TrimSuffix(many, "&"), 400, "want at most 512 at once", ""},
		{"GET /v1/nonsense", 404, "", ""},
	} {
		f := new(fake)
		method, rest, _ := strings.Cut(tc.ask, " ")
		target, body, _ := strings.Cut(rest, " ")
		w := httptest.NewRecorder()
		routes(f, quiet()).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body)))
		got := strings.TrimSpace(w.Body.String())
		if w.Code != tc.status || tc.status == 200 && got != tc.answer || !strings.Contains(got, tc.answer) || f.did != tc.did {
			t.Errorf("%.80s: %d %s, did %q; want %d %s, %q", tc.ask, w.Code, got, f.did, tc.status, tc.answer, tc.did)
		}
		if json := w.Header().Get("Content-Type") == "application/json"; json != (tc.status == http.StatusOK) {
			t.Errorf("%.80s: content type %q", tc.ask, w.Header().Get("Content-Type"))
		}
	}
}

// TestRouteOfAConn: addresses are taken as sockets tell them.
func TestRouteOfAConn(t *testing.T) {
	_, path := start(t)
	c, err := (&control.Client{Socket: path}).Conn(t.Context(), netip.MustParseAddrPort("[::ffff:192.0.2.1]:5"), netip.MustParseAddrPort("[2001:db8::1]:80"))
	if err != nil || c.Local != "192.0.2.1:5" || c.Remote != "[2001:db8::1]:80" {
		t.Errorf("%+v, %v", c, err)
	}
}
