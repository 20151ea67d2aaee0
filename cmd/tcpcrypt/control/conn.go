package control

// A Conn is one connection as the daemon sees it: an element of the array that
// `tcpcrypt conns --json` prints. Pointers are null where there is nothing to say.
type Conn struct {
	ID        uint64 `json:"id"`        // unique for the life of the daemon
	Direction string `json:"direction"` // outbound, inbound
	// Local is the application's own address of an outbound connection, and the
	// address that the remote dialled of an inbound one; Remote is the wire peer. Both
	// as "192.0.2.1:80" or "[2001:db8::1]:80".
	Local  string `json:"local"`
	Remote string `json:"remote"`
	State  string `json:"state"` // opening, open, closed

	Encrypted bool    `json:"encrypted"`
	Reason    *string `json:"reason"`     // why in clear; null if encrypted
	Role      *string `json:"role"`       // A, B
	TEP       *string `json:"tep"`        // p256, p521, curve25519, curve448
	AEAD      *string `json:"aead"`       // aes128gcm, aes256gcm, chacha20poly1305
	SessionID *string `json:"session_id"` // 66 lower-case hex digits
	Resumed   bool    `json:"resumed"`

	BytesSent     uint64 `json:"bytes_sent"`     // of application data, to the wire peer
	BytesReceived uint64 `json:"bytes_received"` // of application data, from the wire peer

	// How often the traffic keys of each direction were replaced (RFC 8548, section 3.8).
	GenerationSent       uint64 `json:"generation_sent"`
	GenerationReceived   uint64 `json:"generation_received"`
	PeerApplicationAware bool   `json:"peer_application_aware"` // the peer's application-aware bit (RFC 8547, section 4.2)
}
