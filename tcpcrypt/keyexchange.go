package tcpcrypt

import (
	"crypto/rand"
	"errors"
	"slices"
)

// A KeyExchange is one side of Init1 and Init2 (RFC 8548, section 3.3). It is not safe
// for concurrent use.
type KeyExchange struct {
	outcome    Outcome
	transcript []byte
	aeads      []AEAD // ours, most preferred first
	budget     keyBudget

	key   keyPair
	nonce []byte // N_A or N_B, ours

	sent     []byte // our Init, nil before
	received []byte // the peer's, as far as it is here
	err      error  // the first failure sticks
	session  *Session
}

func newKeyExchange(o Outcome, transcript []byte, aeads []AEAD) (*KeyExchange, error) {
	key, err := newKeyPair(o.TEP)
	if err != nil {
		return nil, err
	}
	k := &KeyExchange{outcome: o, transcript: transcript, aeads: aeads, key: key, nonce: make([]byte, initNonceLen)}
	rand.Read(k.nonce) // never fails
	return k, nil
}

// Start returns what is to be sent first: Init1 from A, nothing from B. The segment
// with its last byte must have PSH.
func (k *KeyExchange) Start() []byte {
	if k.outcome.Role == RoleB || k.key == nil {
		return nil
	}
	if k.sent == nil {
		k.sent = init1{aeads: k.aeads, nonce: k.nonce, pub: k.key.public()}.append(nil)
	}
	return slices.Clone(k.sent)
}

// Feed takes the next bytes of the peer's stream: n of them belonged to its Init
// message, the rest to what follows. done says that the message was complete and good:
// Session is there, and out, if not nil, is Init2, to be sent before any frame (the
// segment with its last byte must have PSH). An error is final.
func (k *KeyExchange) Feed(b []byte) (n int, out []byte, done bool, err error) {
	if k.err != nil {
		return 0, nil, false, k.err
	}
	n, out, done, err = k.feed(b)
	if err != nil {
		k.err = err
		k.Wipe()
		return n, nil, false, err
	}
	return n, out, done, nil
}

func (k *KeyExchange) feed(b []byte) (n int, out []byte, done bool, err error) {
	if k.session != nil {
		return 0, nil, true, nil
	}
	magic := uint32(init2Magic)
	if k.outcome.Role == RoleB {
		magic = init1Magic
	} else if k.sent == nil {
		return 0, nil, false, errors.New("tcpcrypt: Feed before Start")
	}
	for {
		// First the header, then what it promises: memory grows only with what came.
		want, err := parseInitHeader(k.outcome.TEP, magic, k.received)
		if errors.Is(err, ErrNeedMore) {
			want = initHeaderLen
		} else if err != nil {
			return n, nil, false, err
		}
		if err == nil && len(k.received) == want {
			out, err = k.complete()
			return n, out, err == nil, err
		}
		if n == len(b) {
			return n, nil, false, nil
		}
		take := min(want-len(k.received), len(b)-n)
		k.received = append(k.received, b[n:n+take]...)
		n += take
	}
}

// complete is called with the peer's whole message.
func (k *KeyExchange) complete() (out []byte, err error) {
	var (
		pub, nonceA []byte
		aead        AEAD
		one, two    []byte
	)
	if k.outcome.Role == RoleB {
		m, err := parseInit1(k.outcome.TEP, k.received)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(k.aeads, func(a AEAD) bool { return slices.Contains(m.aeads, a) })
		if i < 0 {
			return nil, ErrNoCommonAEAD
		}
		pub, nonceA, aead = m.pub, m.nonce, k.aeads[i]
		k.sent = init2{aead: aead, nonce: k.nonce, pub: k.key.public()}.append(nil)
		one, two, out = k.received, k.sent, slices.Clone(k.sent)
	} else {
		m, err := parseInit2(k.outcome.TEP, k.received)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(k.aeads, m.aead) {
			return nil, ErrNotOffered
		}
		pub, nonceA, aead = m.pub, k.nonce, m.aead
		one, two = k.sent, k.received
	}
	es, err := k.key.agree(pub)
	if err != nil {
		return nil, err
	}
	ikm := slices.Concat(k.transcript, one, two, es)
	prk := extract(nonceA, ikm)
	clear(ikm)
	clear(es)
	k.session, err = newSession(sessionParams{
		secret: prk, tep: k.outcome.TEP, tepByte: k.outcome.TEPByte, aead: aead,
		role: k.outcome.Role, original: k.outcome.Role, budget: k.budget,
		sent: uint64(len(k.sent)), received: uint64(len(k.received)),
	})
	k.Wipe()
	k.transcript, k.sent, k.received = nil, nil, nil // 32 KiB, perhaps, that would live as long as k
	return out, err
}

// Session returns the session after Feed was done, nil before. The caller owns it.
func (k *KeyExchange) Session() *Session { return k.session }

// Wipe ends the exchange, complete or not, and drops its key. It does not touch the
// session. It may be called twice.
func (k *KeyExchange) Wipe() {
	if k.key != nil {
		k.key.wipe()
		k.key = nil
	}
	if k.err == nil && k.session == nil {
		k.err = ErrWiped
	}
}
