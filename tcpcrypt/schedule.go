package tcpcrypt

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"io"
)

// RFC 8548, section 4.3.
const (
	constNextK  = 0x01
	constSessID = 0x02
	constRekey  = 0x03
	constKeyA   = 0x04
	constKeyB   = 0x05
	constResume = 0x06

	keyLen = 32 // K_LEN
)

// noCopy makes go vet flag copies of the struct that has it.
type noCopy struct{}

func (*noCopy) Lock()   {}
func (*noCopy) Unlock() {}

// A secret is PRK = ss[0], an ss[i] or an mk[j] (RFC 8548, section 3.3). Its owner
// wipes it once what follows from it is derived.
type secret struct {
	_ noCopy
	b [keyLen]byte
}

func (s *secret) wipe() { clear(s.b[:]) }

// Format makes every verb print nothing of use.
func (*secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// extract is Extract(N_A, eno_transcript | Init1 | Init2 | ES), the PRK. ikm is the
// caller's to wipe.
func extract(nonceA, ikm []byte) *secret {
	prk, err := hkdf.Extract(sha256.New, ikm, nonceA)
	if err != nil {
		panic("tcpcrypt: HKDF-Extract: " + err.Error())
	}
	s := new(secret)
	copy(s.b[:], prk)
	clear(prk)
	return s
}

// cprf is CPRF(K, CONST | more, n) (RFC 8548, section 3.3).
func (s *secret) cprf(label byte, more []byte, n int) []byte {
	info := string(append([]byte{label}, more...)) // a constant and public nonces
	out, err := hkdf.Expand(sha256.New, s.b[:], info, n)
	if err != nil {
		panic("tcpcrypt: HKDF-Expand: " + err.Error())
	}
	return out
}

func (s *secret) derive(label byte, more []byte) *secret {
	out := s.cprf(label, more, keyLen)
	d := new(secret)
	copy(d.b[:], out)
	clear(out)
	return d
}

// nextSessionSecret is ss[i+1] from ss[i].
func (s *secret) nextSessionSecret() *secret { return s.derive(constNextK, nil) }

// masterKey is mk[0] from ss[i] with sn[i], or mk[j+1] from mk[j] with nil.
func (s *secret) masterKey(sn []byte) *secret { return s.derive(constRekey, sn) }

// sessionID is session_id[i] from ss[i] (section 3.4).
func (s *secret) sessionID(tepByte byte, sn []byte) (id SessionID) {
	id[0] = tepByte
	copy(id[1:], s.cprf(constSessID, sn, keyLen))
	return id
}

// identifier is resume[i] from ss[i] (section 3.5).
func (s *secret) identifier() (id [2 * halfLen]byte) {
	copy(id[:], s.cprf(constResume, nil, len(id)))
	return id
}
