// Package tcpcrypt is the wire protocol of RFC 8547 (TCP-ENO) and RFC 8548
// (tcpcrypt): options, negotiation, key exchange, records, resumption. It does no
// I/O and starts no goroutine: it is fed the bytes that came and returns the bytes to
// send and what was decided. Time makes it replace keys that are old and forget sessions
// that are, nothing else.
//
// A connection goes through three values, each made by the one before:
//
//	n, _ := tcpcrypt.NewNegotiation(tcpcrypt.Options{}, true) // we open
//	syn := n.SYNOption(20)                  // into our SYN
//	n.ReceiveACK(optionsOfSYNACK, true)     // from the peer's SYN-ACK
//	o, _ := n.Outcome()                     // encrypted? if not, why
//
//	kx, _ := n.KeyExchange()                // or n.ResumedSession()
//	send(kx.Start())                        // Init1, if we are A
//	used, out, done, err := kx.Feed(stream) // the peer's Init; out is Init2, if we are B
//
//	s := kx.Session()
//	frame, err := s.Sealer().Seal(nil, data, tcpcrypt.Flags{})
//	opened, err := s.Opener().Open(frameOfThePeer)
//
// # Resumption
//
// A [Cache] keeps what a later connection to the same peer needs to do without a key
// exchange. The package gives it nothing and takes nothing from it by itself:
//
//	id := cache.Put(peer, active, s.TakeNext())        // when s is there
//	o.Offer = cache.Claim(peer, o)                     // before we open
//	o.Lookup = func(t tcpcrypt.TEP, half [9]byte) *tcpcrypt.Resumable {
//		return cache.Lookup(t, half, o)            // when we are opened to
//	}
//
// A connection that must not resume gets neither Offer nor Lookup; one of which nothing
// is to be kept is not put: Session.Wipe erases what follows from it.
//
// # Roles
//
// A and B are fixed by ENO (RFC 8547, section 4.3), not by who dialled: normally the
// host that opens is A. Keys go by the role played in the original session, also
// after a resumption.
//
// # What it does not do
//
// It authenticates nobody. Two hosts whose [Session.ID] agree talk to each other
// with nobody in between who reads or alters: compare it, or bind credentials to it.
package tcpcrypt
