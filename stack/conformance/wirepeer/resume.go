package wirepeer

import (
	"crypto/rand"
	"slices"
)

// A Chain is what a script keeps of a session in order to resume it (RFC 8548, section
// 3.5): ss[i]. It never spends anything by itself: the script says which i is offered,
// also one that was used before.
type Chain struct {
	TEP    TEP
	Cipher Cipher
	Role   Role // ours in the original session
	Index  int  // i
	secret []byte
}

// Chain returns ss[i+1] of a session, for a later connection.
func (s *Session) Chain() *Chain {
	return (&Chain{TEP: s.TEP, Cipher: s.Cipher, Role: s.Original, Index: s.Index, secret: s.Secret}).Ahead(1)
}

// Ahead returns the chain n secrets further on; c stays as it is.
func (c *Chain) Ahead(n int) *Chain {
	next := *c
	for range n {
		next.secret = nextSecret(next.secret)
	}
	next.Index += n
	return &next
}

// Identifier is resume[i] with the TEP, for Agree.
func (c *Chain) Identifier() *Resumable {
	return &Resumable{TEP: byte(c.TEP), ID: resumeID(c.secret)}
}

// Halves returns the halves of resume[i]: ours, which we send, and the peer's.
func (c *Chain) Halves() (own, peer []byte) {
	id := resumeID(c.secret)
	own, peer = id[:halfLen], id[halfLen:]
	if c.Role == B {
		own, peer = peer, own
	}
	return slices.Clone(own), slices.Clone(peer)
}

// Sub is the suboption that offers or accepts ss[i], with a nonce of 0 to 8 bytes; it
// has to stand last, or behind a length byte.
func (c *Chain) Sub(nonce []byte) []byte {
	own, _ := c.Halves()
	return slices.Concat([]byte{byte(c.TEP) | bitV}, own, nonce)
}

// FreshNonce returns what a host puts behind its half by default.
func FreshNonce() []byte {
	nonce := make([]byte, maxNonceLen)
	_, _ = rand.Read(nonce) // never fails
	return nonce
}

// nonce is Config.Nonce with its default.
func (c *Config) nonce() []byte {
	if c.Nonce == nil {
		return FreshNonce()
	}
	return c.Nonce
}

// answerResumption is the passive opener's option if the SYN offers what cfg.Resume is,
// and nil if it does not.
func (c *Config) answerResumption(subs []Sub) []byte {
	if c.Resume == nil {
		return nil
	}
	offer, ok := find(subs, byte(c.Resume.TEP))
	_, peer := c.Resume.Halves()
	if !ok || !resumeData(offer) || !slices.Equal(offer.Data[:halfLen], peer) {
		return nil
	}
	return BuildENO(append([]byte{passiveBit}, c.Resume.Sub(c.nonce())...)...)
}

// resume makes the session that two identifiers have agreed on.
func (s *Session) resume(c *Chain, ag *Agreement) (err error) {
	ours, theirs := ag.OfferData[halfLen:], ag.AnswerData[halfLen:]
	if s.Role == B {
		ours, theirs = theirs, ours
	}
	sn := slices.Concat(ours, theirs)
	other := B
	if c.Role == B {
		sn, other = slices.Concat(theirs, ours), A
	}
	s.Resumed, s.Original, s.Index = true, c.Role, c.Index
	s.Secret, s.Cipher, s.Offered = c.secret, c.Cipher, []Cipher{c.Cipher}
	s.ID = sessionID(ag.TEPByte, c.secret, sn)
	mk := masterKey(c.secret, sn)
	if s.out, err = newDirection(mk, c.Role, c.Cipher, 0); err != nil {
		return err
	}
	s.in, err = newDirection(mk, other, c.Cipher, 0)
	return err
}
