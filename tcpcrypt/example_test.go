package tcpcrypt_test

import (
	"fmt"
	"log"

	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// Two hosts, and the TCP between them as slices: negotiation in the handshake's
// options, then the key exchange, then frames.
func Example() {
	client, err := tcpcrypt.NewNegotiation(tcpcrypt.Options{}, true)
	if err != nil {
		log.Fatal(err)
	}
	server, err := tcpcrypt.NewNegotiation(tcpcrypt.Options{}, false)
	if err != nil {
		log.Fatal(err)
	}

	// SYN, SYN-ACK, ACK: the option areas of their headers hold nothing but ENO here.
	server.ReceiveSYN(client.SYNOption(20))
	client.ReceiveACK(server.SYNOption(20), true)
	server.ReceiveACK(tcpcrypt.NonSYNOption(), false)
	outcome, _ := client.Outcome()
	fmt.Println("role", outcome.Role, "with", outcome.TEP)

	a, err := client.KeyExchange()
	if err != nil {
		log.Fatal(err)
	}
	b, err := server.KeyExchange()
	if err != nil {
		log.Fatal(err)
	}
	_, init2, _, err := b.Feed(a.Start())
	if err != nil {
		log.Fatal(err)
	}
	if _, _, _, err = a.Feed(init2); err != nil {
		log.Fatal(err)
	}
	ours, theirs := a.Session(), b.Session()
	defer ours.Wipe()
	defer theirs.Wipe()
	fmt.Println("same session:", ours.ID() == theirs.ID())

	frame, err := ours.Sealer().Seal(nil, []byte("hello"), tcpcrypt.Flags{FIN: true})
	if err != nil {
		log.Fatal(err)
	}
	opened, err := theirs.Opener().Open(frame)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, last: %v, end of file: %v\n", opened.Data, opened.FIN, theirs.Opener().EndOfStream() == nil)

	// Output:
	// role A with curve25519
	// same session: true
	// hello, last: true, end of file: true
}
