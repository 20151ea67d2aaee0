package tcpcrypt

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Options says what to offer and accept. The zero value is what most callers want.
type Options struct {
	TEPs  []TEP  // most preferred first; nil means DefaultTEPs
	AEADs []AEAD // most preferred first; nil means DefaultAEADs

	// PassiveRole makes an active opener send b = 1, so that it plays B in a
	// simultaneous open. A passive opener always does.
	PassiveRole bool

	// ApplicationAware is our application-aware bit. RequireApplicationAware turns
	// encryption off if the peer's is not set (RFC 8547, section 4.3).
	ApplicationAware, RequireApplicationAware bool

	// Offer is a session to resume when we open, nil for none. The negotiation owns
	// it: it is spent on this connection, whatever comes of that, an error of
	// NewNegotiation too. It is not offered if
	// TEPs or AEADs lack its own, or if there is no room for it.
	Offer *Resumable

	// Lookup returns the session of which half is the peer's identifier half, when we
	// are opened to; the negotiation owns it as it owns Offer. It must claim it, so
	// that no other call returns it. It is asked only if the answer has room for it.
	// nil, or a nil result, answers with a fresh key exchange.
	Lookup func(t TEP, half [IdentifierHalfLen]byte) *Resumable

	// MaxKeyBytes and MaxKeyFrames lower what one traffic key of ours protects before
	// we rekey. 0, and more than the constants of these names, means those.
	MaxKeyBytes, MaxKeyFrames uint64

	// MaxKeyAge lowers how long a key of ours is used: the first frame after it is under
	// new keys. 0, and more than an hour, means an hour.
	MaxKeyAge time.Duration

	// ShortNonce makes the nonce of a resumption shorter than 8 bytes, by as many
	// bytes. Without a nonce a cloned machine may repeat keys.
	ShortNonce int
}

// withDefaults returns o with nil replaced, or why o makes no sense.
func (o Options) withDefaults() (Options, error) {
	if o.TEPs == nil {
		o.TEPs = DefaultTEPs()
	}
	if o.AEADs == nil {
		o.AEADs = DefaultAEADs()
	}
	o.TEPs, o.AEADs = slices.Clone(o.TEPs), slices.Clone(o.AEADs)
	if len(o.TEPs) == 0 || len(o.AEADs) == 0 {
		return o, errors.New("tcpcrypt: no TEPs or no AEADs in Options")
	}
	for i, t := range o.TEPs {
		if !t.known() || slices.Contains(o.TEPs[:i], t) {
			return o, fmt.Errorf("tcpcrypt: TEP %v in Options is unknown or there twice", t)
		}
	}
	for i, a := range o.AEADs {
		if !a.known() || slices.Contains(o.AEADs[:i], a) {
			return o, fmt.Errorf("tcpcrypt: AEAD %v in Options is unknown or there twice", a)
		}
	}
	if o.ShortNonce < 0 || o.ShortNonce > maxNonceLen {
		return o, fmt.Errorf("tcpcrypt: ShortNonce is %d, want 0 to %d", o.ShortNonce, maxNonceLen)
	}
	if o.MaxKeyAge < 0 {
		return o, fmt.Errorf("tcpcrypt: MaxKeyAge is %v, want at least 0", o.MaxKeyAge)
	}
	return o, nil
}

func (o Options) budget() keyBudget { return keyBudget{o.MaxKeyBytes, o.MaxKeyFrames, o.MaxKeyAge} }

// mayResume reports whether o allows what r brings with it.
func (o Options) mayResume(r *Resumable) bool {
	return r != nil && r.secret != nil && slices.Contains(o.TEPs, r.tep) && slices.Contains(o.AEADs, r.aead)
}
