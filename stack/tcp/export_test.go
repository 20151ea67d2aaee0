package tcp

// What tests of the outside need from the inside.

// CodecOf returns the codec of an encrypted connection.
func CodecOf(s *SecureEndpoint) Codec { return s.codec }

// SealEmpty sends a record without data.
func SealEmpty(s *SecureEndpoint) {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	_, _ = s.queueRecord(nil)
}

// PayloadSize returns the size of full packets, in bytes.
func PayloadSize(s *SecureEndpoint) int {
	s.inner.LockUser()
	defer s.inner.UnlockUser()
	return s.inner.snd.MaxPayloadSize
}

// PayOwed sends what the peer is owed, if nobody else is writing.
func PayOwed(s *SecureEndpoint) { s.payOwed() }

// Quiet says whether all that was sent is acknowledged.
func Quiet(s *SecureEndpoint) bool { return !s.look().queued }
