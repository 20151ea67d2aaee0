package control

import "time"

// A Session is a chain of session secrets that a later connection may be resumed from
// (RFC 8548, section 3.5), without the secrets: an element of the array that
// `tcpcrypt sessions --json` prints.
type Session struct {
	ID       uint64 `json:"id"`        // unique for the life of the daemon
	Peer     string `json:"peer"`      // of the connection that made it, as "192.0.2.1:80"
	OpenedBy string `json:"opened_by"` // who opened that connection: us, peer
	Role     string `json:"role"`      // ours in it: A, B
	TEP      string `json:"tep"`       // as Conn's
	AEAD     string `json:"aead"`      // as Conn's

	NextIndex uint64    `json:"next_index"` // i of the secret that the next connection would use; 0 was the fresh one's
	Created   time.Time `json:"created"`    // of its key exchange; UTC, to the millisecond
	Expires   time.Time `json:"expires"`    // it is erased then
}

// A Remembered is a destination that the option does not reach: until Until,
// opportunistic connections there do not offer it. An element of the array that
// `tcpcrypt remembered --json` prints.
type Remembered struct {
	Peer   string    `json:"peer"`   // as "192.0.2.1:80"
	Reason string    `json:"reason"` // as Conn's
	Since  time.Time `json:"since"`  // UTC, to the millisecond
	Until  time.Time `json:"until"`
}

// Flushed is how much Client.Flush made the daemon forget.
type Flushed struct {
	Sessions   int `json:"sessions"`
	Remembered int `json:"remembered"`
}

// Rekeyed is how many connections Client.Rekey gave new keys.
type Rekeyed struct {
	Connections int `json:"connections"`
}
