package wirepeer

import (
	"crypto/hkdf"
	"crypto/sha256"
	"slices"
)

// Constants of RFC 8548, section 4.3.
const (
	constNextK  = 0x01
	constSessID = 0x02
	constRekey  = 0x03
	constKeyA   = 0x04
	constKeyB   = 0x05
	constResume = 0x06

	kLen = 32
)

// Role is A or B (RFC 8547, section 4.3).
type Role byte

// The roles.
const (
	A Role = 'A'
	B Role = 'B'
)

func (r Role) String() string { return string(rune(r)) }

func extract(salt, ikm []byte) []byte {
	prk, err := hkdf.Extract(sha256.New, ikm, salt)
	if err != nil {
		panic(err) // FIPS mode only: not ours
	}
	return prk
}

// cprf is CPRF(K, CONST, L).
func cprf(key, info []byte, length int) []byte {
	out, err := hkdf.Expand(sha256.New, key, string(info), length)
	if err != nil {
		panic(err) // lengths are constants
	}
	return out
}

// firstSecret is ss[0] = PRK (RFC 8548, section 3.3).
func firstSecret(nonceA, transcript, init1, init2, es []byte) []byte {
	return extract(nonceA, slices.Concat(transcript, init1, init2, es))
}

// nextSecret is ss[i+1].
func nextSecret(ss []byte) []byte { return cprf(ss, []byte{constNextK}, kLen) }

// resumeID is resume[i]: A's half, then B's (section 3.5).
func resumeID(ss []byte) [18]byte { return [18]byte(cprf(ss, []byte{constResume}, 18)) }

// sessionID is session_id[i] (section 3.4); sn is empty for a fresh session.
func sessionID(tepByte byte, ss, sn []byte) [33]byte {
	return [33]byte(append([]byte{tepByte}, cprf(ss, append([]byte{constSessID}, sn...), kLen)...))
}

// masterKey is mk[0] for ss[i].
func masterKey(ss, sn []byte) []byte { return cprf(ss, append([]byte{constRekey}, sn...), kLen) }

// nextMaster is mk[j+1].
func nextMaster(mk []byte) []byte { return cprf(mk, []byte{constRekey}, kLen) }

// trafficKey is k_ab[j] or k_ba[j]: what the host that played the role seals with.
func trafficKey(mk []byte, sender Role, c Cipher) []byte {
	label := byte(constKeyA)
	if sender == B {
		label = constKeyB
	}
	return cprf(mk, []byte{label}, c.keyLen()+nonceLen)
}
