package tcpcrypt

import "time"

// What a peer can make us hold or compute, and how long a key lasts.
const (
	// maxInitLen bounds message_len: the largest useful Init1 has about 620 bytes, and
	// ignored bytes of any length would let a peer fill memory before it has proved
	// anything.
	maxInitLen = 16 << 10

	// MaxKeyBytes is how many bytes of plaintext one traffic key protects before the
	// Sealer rekeys: a minute's worth at 10 Gbit/s. Of AES-GCM's blocks these are 2^32;
	// an attacker's advantage grows with their square and stays below 2^-60.
	MaxKeyBytes = 1 << 36

	// MaxKeyFramesGCM is how many frames one key of AES-GCM protects, QUIC's bound
	// (RFC 9001, section 6.6).
	MaxKeyFramesGCM = 1 << 23

	// MaxKeyFramesChaCha20Poly1305 is the same for ChaCha20-Poly1305, which needs no
	// bound within our reach: nearly always MaxKeyBytes comes first.
	MaxKeyFramesChaCha20Poly1305 = 1 << 32

	// MaxKeySeconds is how long one key is used: the Sealer rekeys with the first frame
	// after it.
	MaxKeySeconds = 3600
)

// A Cache's bounds unless its options say otherwise. A session takes about 1 KiB in it:
// a peer pays a whole key exchange for each.
const (
	defaultCacheEntries = 4096
	defaultCachePerPeer = 64
	defaultCacheAge     = time.Hour

	// maxPerDestination is how many sessions with one address, port and TEP wait for
	// opens of ours: as many connections opened at once resume different ones.
	maxPerDestination = 8
)

// A keyBudget is how much one traffic key protects.
type keyBudget struct {
	bytes, frames uint64
	age           time.Duration
}

// budget is the most that a key of a may protect, lowered to what is not 0 in lower.
func (a AEAD) budget(lower keyBudget) keyBudget {
	b := keyBudget{MaxKeyBytes, MaxKeyFramesGCM, MaxKeySeconds * time.Second}
	if a == ChaCha20Poly1305 {
		b.frames = MaxKeyFramesChaCha20Poly1305
	}
	if lower.bytes != 0 {
		b.bytes = min(b.bytes, lower.bytes)
	}
	if lower.frames != 0 {
		b.frames = min(b.frames, lower.frames)
	}
	if lower.age != 0 {
		b.age = min(b.age, lower.age)
	}
	return b
}
