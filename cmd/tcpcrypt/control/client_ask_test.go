package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestRequests: what each method asks for, and what it makes of the answer.
func TestRequests(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, tc := range map[string]struct {
		ask    func(context.Context, *Client) (any, error)
		want   string // the request
		answer string
		result any
	}{
		"conn": {func(ctx context.Context, c *Client) (any, error) {
			return c.Conn(ctx, netip.MustParseAddrPort("192.0.2.1:5"), netip.MustParseAddrPort("[2001:db8::1]:80"))
		}, "GET /v1/conn?local=192.0.2.1%3A5&remote=%5B2001%3Adb8%3A%3A1%5D%3A80", `{"id":7,"encrypted":true}`, Conn{ID: 7, Encrypted: true}},
		"sessions": {func(ctx context.Context, c *Client) (any, error) { return c.Sessions(ctx) },
			"GET /v1/sessions", `[{"id":3,"peer":"192.0.2.1:80","opened_by":"us","next_index":2,"expires":"2030-01-02T03:04:05Z"}]`,
			[]Session{{ID: 3, Peer: "192.0.2.1:80", OpenedBy: "us", NextIndex: 2, Expires: at}}},
		"no sessions": {func(ctx context.Context, c *Client) (any, error) { return c.Sessions(ctx) },
			"GET /v1/sessions", `[]`, []Session{}},
		"remembered": {func(ctx context.Context, c *Client) (any, error) { return c.Remembered(ctx) },
			"GET /v1/remembered", `[{"peer":"192.0.2.1:80","reason":"fallback","until":"2030-01-02T03:04:05Z"}]`,
			[]Remembered{{Peer: "192.0.2.1:80", Reason: "fallback", Until: at}}},
		"flush all": {func(ctx context.Context, c *Client) (any, error) { return c.Flush(ctx, netip.Addr{}) },
			"POST /v1/flush", `{"sessions":2,"remembered":1}`, Flushed{Sessions: 2, Remembered: 1}},
		"flush one": {func(ctx context.Context, c *Client) (any, error) {
			return c.Flush(ctx, netip.MustParseAddr("2001:db8::1"))
		}, "POST /v1/flush?peer=2001%3Adb8%3A%3A1", `{"sessions":0,"remembered":0}`, Flushed{}},
		"rekey all": {func(ctx context.Context, c *Client) (any, error) { return c.Rekey(ctx) },
			"POST /v1/rekey", `{"connections":4}`, Rekeyed{4}},
		"rekey some": {func(ctx context.Context, c *Client) (any, error) { return c.Rekey(ctx, 9, 1<<63) },
			"POST /v1/rekey?id=9&id=9223372036854775808", `{"connections":1}`, Rekeyed{1}},
	} {
		t.Run(name, func(t *testing.T) {
			var asked string
			path := serve(t, func(w http.ResponseWriter, r *http.Request) {
				asked = r.Method + " " + r.URL.String()
				fmt.Fprint(w, tc.answer)
			})
			got, err := tc.ask(t.Context(), &Client{Socket: path})
			if err != nil || !reflect.DeepEqual(got, tc.result) {
				t.Errorf("%+v, %v; want %+v", got, err, tc.result)
			}
			if asked != tc.want {
				t.Errorf("asked for %s, want %s", asked, tc.want)
			}
		})
	}
}

// TestNoConn: that there is none is told apart from every other failure.
func TestNoConn(t *testing.T) {
	local, remote := netip.MustParseAddrPort("192.0.2.1:5"), netip.MustParseAddrPort("192.0.2.2:80")
	for code, want := range map[int]bool{http.StatusNotFound: true, http.StatusBadRequest: false} {
		path := serve(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "so it is", code) })
		_, err := (&Client{Socket: path}).Conn(t.Context(), local, remote)
		if err == nil || errors.Is(err, ErrNoConn) != want || !strings.Contains(err.Error(), path) {
			t.Errorf("status %d: %v", code, err)
		}
	}
}
