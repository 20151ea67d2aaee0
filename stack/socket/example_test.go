package socket_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/netip"

	"github.com/tcpcrypt/tcpcrypt/stack"
	"github.com/tcpcrypt/tcpcrypt/stack/socket"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
	"github.com/tcpcrypt/tcpcrypt/tun"
)

var (
	client = netip.MustParseAddr("192.0.2.1")
	server = netip.MustParseAddrPort("192.0.2.2:80")
)

// twoHosts makes two stacks that are joined in memory.
func twoHosts(o socket.Options) (a, b *socket.Net) {
	left, right := tun.Pipe(1500, tun.PipeOptions{})
	o.Link, o.Addrs = left, []netip.Addr{client}
	a, err := socket.New(o)
	if err != nil {
		log.Fatal(err)
	}
	o.Link, o.Addrs = right, []netip.Addr{server.Addr()}
	if b, err = socket.New(o); err != nil {
		log.Fatal(err)
	}
	return a, b
}

// Both ends of a connection have the same session ID.
func Example() {
	ctx := context.Background()
	a, b := twoHosts(socket.Options{})
	defer a.Close()
	defer b.Close()
	l, err := b.Listen(server, socket.ConnOptions{})
	if err != nil {
		log.Fatal(err)
	}

	ids := make(chan tcpcrypt.SessionID)
	go func() {
		c, err := l.AcceptConn()
		if err != nil {
			log.Fatal(err)
		}
		defer c.Close()
		s, err := c.Security(ctx) // waits for the keys
		if err != nil {
			log.Fatal(err)
		}
		ids <- s.SessionID
		_, _ = io.Copy(c, c)
	}()

	c, err := a.Dial(ctx, server, socket.ConnOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	s, err := c.Security(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("encrypted:", s.Encrypted, s.TEP, s.AEAD, "role", s.Role)
	fmt.Println("same session:", s.SessionID == <-ids)

	_, _ = io.WriteString(c, "hello")
	_ = c.CloseWrite()
	answer, err := io.ReadAll(c)
	fmt.Printf("%s %v\n", answer, err)
	// Output:
	// encrypted: true curve25519 aes128gcm role A
	// same session: true
	// hello <nil>
}

// Under a require policy nothing is ever sent in clear.
func Example_require() {
	a, b := twoHosts(socket.Options{})
	defer a.Close()
	defer b.Close()
	if _, err := b.Listen(server, socket.ConnOptions{Policy: stack.Bypass}); err != nil { // ordinary TCP
		log.Fatal(err)
	}
	_, err := a.Dial(context.Background(), server, socket.ConnOptions{Policy: stack.Require})
	fmt.Println(err)
	var plain *socket.NotEncryptedError
	fmt.Println(errors.As(err, &plain) && plain.Reason == tcpcrypt.ReasonNoENO)
	// Output:
	// dial tcp 192.0.2.2:80: policy requires encryption: no-eno
	// true
}

// With a cache, later connections to a peer need no key exchange: data may flow one round
// trip earlier.
func Example_resumption() {
	ctx := context.Background()
	cacheA, cacheB := tcpcrypt.NewCache(tcpcrypt.CacheOptions{}), tcpcrypt.NewCache(tcpcrypt.CacheOptions{})
	defer cacheA.Close()
	defer cacheB.Close()
	left, right := tun.Pipe(1500, tun.PipeOptions{})
	a, errA := socket.New(socket.Options{Link: left, Addrs: []netip.Addr{client}, Cache: cacheA})
	b, errB := socket.New(socket.Options{Link: right, Addrs: []netip.Addr{server.Addr()}, Cache: cacheB})
	if err := errors.Join(errA, errB); err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	l, err := b.Listen(server, socket.ConnOptions{})
	if err != nil {
		log.Fatal(err)
	}
	for range 3 {
		accepted := make(chan *socket.Conn, 1)
		go func() {
			c, err := l.AcceptConn()
			if err != nil {
				log.Fatal(err)
			}
			accepted <- c
		}()
		c, err := a.Dial(ctx, server, socket.ConnOptions{})
		if err != nil {
			log.Fatal(err)
		}
		defer c.Close()
		peer := <-accepted
		defer peer.Close()
		s, err := c.Security(ctx)
		if err != nil {
			log.Fatal(err)
		}
		same, err := peer.Security(ctx)
		fmt.Println("resumed:", s.Resumed, "same session:", s.SessionID == same.SessionID, err)
		if s.Resumed {
			c.Forget() // for want of trust, say
		}
	}
	// Output:
	// resumed: false same session: true <nil>
	// resumed: true same session: true <nil>
	// resumed: false same session: true <nil>
}

// HTTP needs to know nothing: a Listener is a net.Listener, and DialContext fits
// http.Transport.
func Example_http() {
	a, b := twoHosts(socket.Options{Conn: socket.ConnOptions{Policy: stack.Require}})
	defer a.Close()
	defer b.Close()
	l, err := b.Listen(server, socket.ConnOptions{Policy: stack.Require})
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s asks for %s", r.RemoteAddr[:len("192.0.2.1")], r.URL.Path)
	})}
	go srv.Serve(l) //nolint:errcheck // ends with ErrServerClosed
	defer srv.Close()

	transport := &http.Transport{DialContext: a.DialContext}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://192.0.2.2/index.html")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fmt.Printf("%s: %s %v\n", resp.Status, body, err)
	// Output:
	// 200 OK: 192.0.2.1 asks for /index.html <nil>
}
