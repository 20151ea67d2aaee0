package tcpcrypt

// What a peer can make us hold or compute, and how long a key lasts.
const (
	// maxInitLen bounds message_len: the largest useful Init1 has about 620 bytes, and
	// ignored bytes of any length would let a peer fill memory before it has proved
	// anything.
	maxInitLen = 16 << 10

	// maxKeyBytes is how much plaintext one traffic key protects before we rekey. It is
	// far below what any of the AEADs needs, and reached within a minute at 10 Gbit/s.
	maxKeyBytes = 1 << 36

	// maxKeyFramesGCM keeps the advantage of an attacker on AES-GCM, whose bound falls
	// with the square of the blocks, below 2^-57 even if every frame is full.
	maxKeyFramesGCM = 1 << 23

	// maxKeyFramesChaCha is a bound in name only: 2^36 bytes come first.
	maxKeyFramesChaCha = 1 << 32
)
