package daemon

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/control"
)

// An answerer knows what the control socket is asked for.
type answerer interface {
	list(closed bool) []control.Conn
	conn(local, remote netip.AddrPort) (control.Conn, bool)
	sessions() []control.Session
	remembered() []control.Remembered
	flush(peer netip.Addr) control.Flushed // the zero Addr: all
	rekey(ids []uint64) control.Rekeyed    // none: all
}

// A badRequest is what is wrong with a request, and what would be right.
type badRequest string

func (b badRequest) Error() string { return string(b) }

// A notFound is what is not there.
type notFound string

func (n notFound) Error() string { return string(n) }

// routes serves what control's paths say.
func routes(a answerer, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	// known are the parameters; of those only "id" may be there twice.
	handle := func(pattern string, answer func(q url.Values) (any, error), known ...string) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			q, err := parameters(r, known)
			var reply any
			if err == nil {
				reply, err = answer(q)
			}
			switch err.(type) { //nolint:errorlint // ours, never wrapped
			case nil:
			case notFound:
				http.Error(w, err.Error(), http.StatusNotFound)
				return
			default:
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(reply); err != nil {
				log.Debug("control: client went away", slog.Any("err", err))
			}
		})
	}
	handle("GET "+control.PathConns, func(q url.Values) (any, error) {
		closed, err := strconv.ParseBool(q.Get("closed"))
		if err != nil && q.Has("closed") {
			return nil, badRequest("closed: want true or false")
		}
		return a.list(closed), nil
	}, "closed")
	handle("GET "+control.PathConn, func(q url.Values) (any, error) {
		local, err := addrPort(q, "local")
		if err != nil {
			return nil, err
		}
		remote, err := addrPort(q, "remote")
		if err != nil {
			return nil, err
		}
		c, ok := a.conn(local, remote)
		if !ok {
			return nil, notFound("no such connection")
		}
		return c, nil
	}, "local", "remote")
	handle("GET "+control.PathSessions, func(url.Values) (any, error) { return a.sessions(), nil })
	handle("GET "+control.PathRemembered, func(url.Values) (any, error) { return a.remembered(), nil })
	handle("POST "+control.PathFlush, func(q url.Values) (any, error) {
		var peer netip.Addr
		if q.Has("peer") {
			var err error
			if peer, err = netip.ParseAddr(q.Get("peer")); err != nil {
				return nil, badRequest(fmt.Sprintf("peer: %q is not an address; want one such as 192.0.2.1, without port, or leave it out for all", q.Get("peer")))
			}
		}
		return a.flush(peer.Unmap()), nil
	}, "peer")
	handle("POST "+control.PathRekey, func(q url.Values) (any, error) {
		if n := len(q["id"]); n > control.MaxRekey {
			return nil, badRequest(fmt.Sprintf("id: %d of them; want at most %d at once, or none for all connections", n, control.MaxRekey))
		}
		var ids []uint64
		for _, s := range q["id"] {
			id, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				return nil, badRequest(fmt.Sprintf("id: %q is not the id of a connection; want a number", s))
			}
			ids = append(ids, id)
		}
		slices.Sort(ids)
		return a.rekey(slices.Compact(ids)), nil
	}, "id")
	return mux
}

// parameters reads the query. What is misspelt is refused: flushing all because of it
// would be worse. So is a body, where somebody may have put what belongs into the query.
func parameters(r *http.Request, known []string) (url.Values, error) {
	if r.ContentLength != 0 {
		return nil, badRequest("takes no body; parameters go into the query")
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("cannot read the query: " + err.Error())
	}
	for _, key := range slices.Sorted(maps.Keys(q)) {
		switch {
		case !slices.Contains(known, key) && len(known) == 0:
			return nil, badRequest(fmt.Sprintf("%q: there are no parameters here", key))
		case !slices.Contains(known, key):
			return nil, badRequest(fmt.Sprintf("%q: unknown parameter; want %s", key, strings.Join(known, ", ")))
		case len(q[key]) > 1 && key != "id":
			return nil, badRequest(key + ": is there twice; want it once")
		}
	}
	return q, nil
}

func addrPort(q url.Values, key string) (netip.AddrPort, error) {
	if !q.Has(key) {
		return netip.AddrPort{}, badRequest(key + ": is missing; want the address and port of that end")
	}
	a, err := netip.ParseAddrPort(q.Get(key))
	if err != nil {
		return a, badRequest(fmt.Sprintf("%s: %q is not an address with port; want one such as 192.0.2.1:80 or [2001:db8::1]:80", key, q.Get(key)))
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}
