package tcpcrypt_test

import (
	"fmt"
	"log"
	"net/netip"

	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// A client and a server that keep sessions: the second connection needs no key exchange.
func ExampleCache() {
	var (
		addr    = netip.MustParseAddrPort("192.0.2.1:80")    // the server's
		source  = netip.MustParseAddrPort("192.0.2.9:40000") // the client's: recorded, and not looked for
		ofUs    = tcpcrypt.NewCache(tcpcrypt.CacheOptions{})
		ofThem  = tcpcrypt.NewCache(tcpcrypt.CacheOptions{})
		options tcpcrypt.Options // what is allowed, at both ends
	)
	defer ofUs.Close()
	defer ofThem.Close()

	for range 2 {
		// Before we open. A claim is spent, also if the connection comes to nothing.
		o := options
		o.Offer = ofUs.Claim(addr, options)
		client, err := tcpcrypt.NewNegotiation(o, true)
		if err != nil {
			log.Fatal(err)
		}
		// When the SYN arrives.
		o = options
		o.Lookup = func(t tcpcrypt.TEP, half [tcpcrypt.IdentifierHalfLen]byte) *tcpcrypt.Resumable {
			return ofThem.Lookup(t, half, options)
		}
		server, err := tcpcrypt.NewNegotiation(o, false)
		if err != nil {
			log.Fatal(err)
		}
		server.ReceiveSYN(client.SYNOption(21))
		client.ReceiveACK(server.SYNOption(21), true)
		server.ReceiveACK(tcpcrypt.NonSYNOption(), false)

		ours, theirs := keys(client, server)
		fmt.Println("same session:", ours.ID() == theirs.ID(), "resumed:", ours.Resumed())

		// A session that was resumed has nothing more to give: its chain is in the cache.
		ofUs.Put(addr, true, ours.TakeNext())
		ofThem.Put(source, false, theirs.TakeNext())
		ours.Wipe()
		theirs.Wipe()
	}
	for _, s := range ofThem.Sessions() {
		fmt.Printf("%v %v, as %v: ss[%d] is next\n", s.Peer, s.TEP, s.Role, s.Index)
	}
	fmt.Println("flushed:", ofUs.Flush(addr.Addr()))

	// Output:
	// same session: true resumed: false
	// same session: true resumed: true
	// 192.0.2.9:40000 curve25519, as B: ss[2] is next
	// flushed: 1
}

// keys brings both ends from their negotiations to their sessions.
func keys(client, server *tcpcrypt.Negotiation) (ours, theirs *tcpcrypt.Session) {
	var err error
	if o, _ := client.Outcome(); o.Resumed {
		if ours, err = client.ResumedSession(); err == nil {
			theirs, err = server.ResumedSession()
		}
		if err != nil {
			log.Fatal(err)
		}
		return ours, theirs
	}
	a, err := client.KeyExchange()
	if err != nil {
		log.Fatal(err)
	}
	b, err := server.KeyExchange()
	if err != nil {
		log.Fatal(err)
	}
	_, init2, _, err := b.Feed(a.Start())
	if err == nil {
		_, _, _, err = a.Feed(init2)
	}
	if err != nil {
		log.Fatal(err)
	}
	return a.Session(), b.Session()
}

// An operator's view: forget what was agreed on with one peer, or all of it.
func ExampleCache_Flush() {
	cache := tcpcrypt.NewCache(tcpcrypt.CacheOptions{Entries: 100})
	defer cache.Close()
	fmt.Println(cache.Flush(netip.MustParseAddr("2001:db8::1")), cache.Flush(netip.Addr{}))
	// Output: 0 0
}
