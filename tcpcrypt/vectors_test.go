package tcpcrypt

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"testing"
)

// The vectors in testdata/vectors come from an independent implementation; see the
// README there.

func readVectors(t *testing.T, name string, into any) {
	t.Helper()
	data, err := os.ReadFile("testdata/vectors/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatalf("vector is not hex: %v", err)
	}
	return b
}

func unhexInt(t *testing.T, s string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(s, 16, 16)
	if err != nil {
		t.Fatalf("vector is not a hex number: %v", err)
	}
	return n
}

func wantHex(t *testing.T, what string, got []byte, want string) {
	t.Helper()
	if hex.EncodeToString(got) != want {
		t.Errorf("%s = %x, want %s", what, got, want)
	}
}

type vectorKeys struct {
	MK    string `json:"mk"`
	KAB   string `json:"k_ab"`
	KBA   string `json:"k_ba"`
	KeyAB string `json:"key_ab"`
	NRAB  string `json:"nr_ab"`
	KeyBA string `json:"key_ba"`
	NRBA  string `json:"nr_ba"`
}

type vectorFrame struct {
	Name       string  `json:"name"`
	Offset     uint64  `json:"offset"`
	Generation int     `json:"generation"`
	Rekey      int     `json:"rekey"`
	FINp       int     `json:"finp"`
	Urgent     *uint16 `json:"urgent"`
	FrameID    string  `json:"frame_id"`
	Nonce      string  `json:"nonce"`
	AD         string  `json:"ad"`
	Flags      string  `json:"flags"`
	Data       string  `json:"data"`
	DataLen    int     `json:"data_len"` // of the large one, whose byte k is k mod 251
	DataSHA    string  `json:"data_sha256"`
	CipherSHA  string  `json:"ciphertext_sha256"`
	Tag        string  `json:"tag"`
	Plaintext  string  `json:"plaintext"`
	Ciphertext string  `json:"ciphertext"`
	Frame      string  `json:"frame"`
}

type vectorSide struct {
	Private    string `json:"private"`
	PublicWire string `json:"public_wire"`
	Nonce      string `json:"nonce"`
	ENOOption  string `json:"eno_option"`
}

type vectorResumed struct {
	I             int          `json:"i"`
	ActiveRole    string       `json:"active_opener_original_role"`
	NonceA        string       `json:"nonce_a"`
	NonceB        string       `json:"nonce_b"`
	ActiveOption  string       `json:"active_option"`
	PassiveOption string       `json:"passive_option"`
	SN            string       `json:"sn"`
	SessionID     string       `json:"session_id"`
	Keys          []vectorKeys `json:"keys"`
	FrameAB       vectorFrame  `json:"frame_ab"`
	FrameBA       vectorFrame  `json:"frame_ba"`
}

type vectorCase struct {
	Name       string     `json:"name"`
	TEP        string     `json:"tep"`
	AEAD       string     `json:"aead"`
	Offered    []string   `json:"offered_ciphers"`
	A          vectorSide `json:"a"`
	B          vectorSide `json:"b"`
	Transcript string     `json:"eno_transcript"`
	Init1      string     `json:"init1"`
	Init2      string     `json:"init2"`
	ES         string     `json:"es"`
	PRK        string     `json:"prk"`
	SS         []string   `json:"ss"`
	Resume     []*struct {
		All   string `json:"all"`
		HalfA string `json:"half_a"`
		HalfB string `json:"half_b"`
	} `json:"resume"`
	SessionID string          `json:"session_id"`
	Keys      []vectorKeys    `json:"keys"`
	FramesAB  []vectorFrame   `json:"frames_ab"`
	FramesBA  []vectorFrame   `json:"frames_ba"`
	Resumed   []vectorResumed `json:"resumed"`
}

// fixedKey is the key pair of a private scalar.
func fixedKey(t *testing.T, tep TEP, scalar []byte) keyPair {
	t.Helper()
	if tep == Curve448 {
		p := new(x448Pair)
		if copy(p.private[:], scalar) != len(p.private) {
			t.Fatal("bad scalar")
		}
		return p
	}
	key, err := tep.ecdh().NewPrivateKey(scalar)
	if err != nil {
		t.Fatal(err)
	}
	return &ecdhPair{tep, key}
}

func aeads(t *testing.T, ids []string) (as []AEAD) {
	t.Helper()
	for _, id := range ids {
		as = append(as, AEAD(unhexInt(t, id)))
	}
	return as
}

func TestVectorsRFC8548(t *testing.T) {
	var file struct {
		Cases []vectorCase `json:"cases"`
	}
	readVectors(t, "rfc8548.json", &file)
	if len(file.Cases) != 16 {
		t.Fatalf("%d cases, want 16", len(file.Cases))
	}
	for _, c := range file.Cases {
		t.Run(c.Name, func(t *testing.T) { testVectorCase(t, c) })
	}
}

func testVectorCase(t *testing.T, c vectorCase) {
	t.Helper()
	tep, aead := TEP(unhexInt(t, c.TEP)), AEAD(unhexInt(t, c.AEAD))
	optA, optB := unhex(t, c.A.ENOOption), unhex(t, c.B.ENOOption)

	// The negotiation, as either side decides it.
	a, errA := parseENO(optA)
	b, errB := parseENO(optB)
	if errA != nil || errB != nil {
		t.Fatalf("options: %v, %v", errA, errB)
	}
	ch := choose(a, b, func(TEP, []byte, []byte) bool { return false })
	if !ch.ok || ch.tep != tep || !ch.oneIsA || ch.resume {
		t.Fatalf("choose = %+v, want %v, first option A's", ch, tep)
	}
	n := Negotiation{phase: phaseEncrypted, chosen: ch, mine: a, peer: b}
	wantHex(t, "eno_transcript", n.transcript(), c.Transcript)

	// Both sides of the key exchange, with the vector's keys and nonces.
	offered := aeads(t, c.Offered)
	o := Outcome{Encrypted: true, Role: RoleA, TEP: tep, TEPByte: byte(tep)}
	kxA := &KeyExchange{outcome: o, transcript: n.transcript(), aeads: offered,
		key: fixedKey(t, tep, unhex(t, c.A.Private)), nonce: unhex(t, c.A.Nonce)}
	o.Role = RoleB
	kxB := &KeyExchange{outcome: o, transcript: n.transcript(), aeads: []AEAD{aead},
		key: fixedKey(t, tep, unhex(t, c.B.Private)), nonce: unhex(t, c.B.Nonce)}
	wantHex(t, "Pub_A", kxA.key.public(), c.A.PublicWire)
	wantHex(t, "Pub_B", kxB.key.public(), c.B.PublicWire)

	init1, init2 := unhex(t, c.Init1), unhex(t, c.Init2)
	m1, err := parseInit1(tep, init1)
	if err != nil {
		t.Fatal(err)
	}
	m2, err := parseInit2(tep, init2)
	if err != nil {
		t.Fatal(err)
	}
	es, err := kxA.key.agree(m2.pub)
	if err != nil {
		t.Fatal(err)
	}
	wantHex(t, "ES at A", es, c.ES)
	if es, err = kxB.key.agree(m1.pub); err != nil {
		t.Fatal(err)
	}
	wantHex(t, "ES at B", es, c.ES)
	prk := extract(m1.nonce, bytes.Join([][]byte{n.transcript(), init1, init2, es}, nil))
	wantHex(t, "PRK", prk.b[:], c.PRK)

	// The messages themselves are the vector's where it has nothing that we never send.
	sent := kxA.Start()
	if sent == nil {
		t.Fatal("A sends no Init1")
	}
	if len(sent) == len(init1) {
		wantHex(t, "Init1", sent, c.Init1)
	} else {
		kxA.sent = init1 // with ignored bytes, which are part of what is hashed
	}
	used, answer, done, err := kxB.Feed(append(bytes.Clone(init1), 0xff))
	if err != nil || !done || used != len(init1) {
		t.Fatalf("B: Feed = %d, done %v, %v; want %d and done", used, done, err, len(init1))
	}
	odd := len(answer) != len(init2)
	if !odd {
		wantHex(t, "Init2", answer, c.Init2)
	}
	if used, _, done, err = kxA.Feed(init2); err != nil || !done || used != len(init2) {
		t.Fatalf("A: Feed = %d, done %v, %v; want %d and done", used, done, err, len(init2))
	}
	sA := kxA.Session()
	if sA.AEAD() != aead || sA.TEP() != tep || sA.Resumed() {
		t.Errorf("session is %v %v, resumed %v; want %v %v", sA.TEP(), sA.AEAD(), sA.Resumed(), tep, aead)
	}
	wantHex(t, "session_id", idBytes(sA.ID()), c.SessionID)
	if !odd {
		wantHex(t, "session_id at B", idBytes(kxB.Session().ID()), c.SessionID)
	}

	// The chain of session secrets.
	ss := prk
	for i, want := range c.SS {
		if i > 0 {
			ss = ss.nextSessionSecret()
		}
		wantHex(t, "ss", ss.b[:], want)
		if r := c.Resume[i]; r != nil {
			id := ss.identifier()
			wantHex(t, "resume", id[:], r.All)
			for role, want := range map[Role]string{RoleA: r.HalfA, RoleB: r.HalfB} {
				own, peer := (&Resumable{secret: ss, role: role}).halves()
				wantHex(t, "half of "+role.String(), own[:], want)
				if other := map[Role]string{RoleA: r.HalfB, RoleB: r.HalfA}[role]; hex.EncodeToString(peer[:]) != other {
					t.Errorf("peer's half for %v = %x, want %s", role, peer, other)
				}
			}
		}
	}
	wantHex(t, "session_id from ss[0]", idBytes(prk.sessionID(byte(tep), nil)), c.SessionID)

	mks := checkKeys(t, aead, prk.masterKey(nil), c.Keys)
	lenA, lenB := uint64(len(init1)), uint64(len(init2))
	checkFrames(t, aead, RoleA, mks, lenA, c.FramesAB)
	checkFrames(t, aead, RoleB, mks, lenB, c.FramesBA)
	for _, r := range c.Resumed {
		checkResumed(t, c, r, tep, aead)
	}
}

func idBytes(id SessionID) []byte { return id[:] }

// checkKeys walks mk[j] from mk[0] and compares the traffic keys of each.
func checkKeys(t *testing.T, aead AEAD, mk *secret, want []vectorKeys) (mks []*secret) {
	t.Helper()
	for j, k := range want {
		if j > 0 {
			mk = mk.masterKey(nil)
		}
		mks = append(mks, mk)
		wantHex(t, "mk", mk.b[:], k.MK)
		n := aead.keyLen()
		ab := mk.cprf(constKeyA, nil, n+aeadNonceLen)
		ba := mk.cprf(constKeyB, nil, n+aeadNonceLen)
		wantHex(t, "k_ab", ab, k.KAB)
		wantHex(t, "k_ba", ba, k.KBA)
		wantHex(t, "key_ab", ab[:n], k.KeyAB)
		wantHex(t, "key_ba", ba[:n], k.KeyBA)
		for role, want := range map[Role]string{RoleA: k.NRAB, RoleB: k.NRBA} {
			key, err := mk.trafficKey(aead, role)
			if err != nil {
				t.Fatal(err)
			}
			wantHex(t, "nonce randomizer", key.randomizer[:], want)
		}
	}
	return mks
}

// checkFrames opens every frame of a direction in order, and seals those that we could
// have sent to the same bytes.
func checkFrames(t *testing.T, aead AEAD, role Role, mks []*secret, start uint64, frames []vectorFrame) {
	t.Helper()
	var gen, gen2 generations
	opener, err := newOpener(&gen, mks[0], aead, role, start)
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := newSealer(&gen2, mks[0], aead, role, start)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if opener.Offset() != f.Offset {
			t.Fatalf("%s: opener at %d, want %d", f.Name, opener.Offset(), f.Offset)
		}
		key, err := mks[f.Generation].trafficKey(aead, role)
		if err != nil {
			t.Fatal(err)
		}
		wantHex(t, f.Name+": nonce", key.nonceAt(f.Offset), f.Nonce)
		if f.FrameID != "" {
			id := new(trafficKey).nonceAt(f.Offset) // XOR zero
			wantHex(t, f.Name+": frame ID", id, f.FrameID)
		}
		data, frame := largeFrame(t, f, sealer)
		reserved := f.Frame != "" && (frame[0]&^rekeyBit != 0 || unhex(t, f.Flags)[0]&^(finBit|urgentBit) != 0)
		if reserved {
			sealer.offset += uint64(len(frame)) // not what we would send
		} else if f.Frame != "" {
			if f.Rekey == 1 {
				gen2.remote.Store(gen2.local.Load()) // the peer has answered what was before
				sealer.Rekey()
			}
			flags := Flags{FIN: f.FINp == 1}
			if f.Urgent != nil {
				flags.HasUrgent, flags.Urgent = true, *f.Urgent
			}
			got, err := sealer.Seal(nil, data, flags)
			if err != nil {
				t.Fatalf("%s: Seal: %v", f.Name, err)
			}
			wantHex(t, f.Name+": frame", got, f.Frame)
			wantHex(t, f.Name+": AD", got[:FrameHeaderLen], f.AD)
			wantHex(t, f.Name+": ciphertext", got[FrameHeaderLen:], f.Ciphertext)
		}
		if f.Frame != "" {
			checkPlaintext(t, f, key)
		}
		n, err := opener.FrameLen(frame)
		if err != nil || n != len(frame) {
			t.Fatalf("%s: FrameLen = %d, %v; want %d", f.Name, n, err, len(frame))
		}
		got, err := opener.Open(bytes.Clone(frame))
		if err != nil {
			t.Fatalf("%s: Open: %v", f.Name, err)
		}
		if !bytes.Equal(got.Data, data) || got.FIN != (f.FINp == 1) || got.Rekeyed != (f.Rekey == 1) {
			t.Errorf("%s: Open = %d bytes, FIN %v, rekeyed %v; want %d bytes, %d, %d",
				f.Name, len(got.Data), got.FIN, got.Rekeyed, len(data), f.FINp, f.Rekey)
		}
		if got.HasUrgent != (f.Urgent != nil) || f.Urgent != nil && got.Urgent != *f.Urgent {
			t.Errorf("%s: urgent %v %d, want %v", f.Name, got.HasUrgent, got.Urgent, f.Urgent)
		}
	}
	if err := opener.EndOfStream(); err != nil {
		t.Errorf("EndOfStream after the last frame: %v", err)
	}
}

// checkPlaintext opens a frame with nothing but its AEAD, for what Open takes apart.
func checkPlaintext(t *testing.T, f vectorFrame, key *trafficKey) {
	t.Helper()
	plain, err := key.aead.Open(nil, unhex(t, f.Nonce), unhex(t, f.Ciphertext), unhex(t, f.AD))
	if err != nil {
		t.Fatalf("%s: %v", f.Name, err)
	}
	wantHex(t, f.Name+": plaintext", plain, f.Plaintext)
	wantHex(t, f.Name+": flags", plain[:1], f.Flags)
	wantHex(t, f.Name+": data", plain[len(plain)-len(f.Data)/2:], f.Data)
	if f.Ciphertext != f.Frame[2*FrameHeaderLen:] || f.AD != f.Frame[:2*FrameHeaderLen] {
		t.Errorf("%s: frame is not AD and ciphertext", f.Name)
	}
}

// largeFrame returns the data and the frame of f: of the large one, which is given by
// hashes, the frame is what sealer makes of it.
func largeFrame(t *testing.T, f vectorFrame, sealer *Sealer) (data, frame []byte) {
	t.Helper()
	if f.Frame != "" {
		return unhex(t, f.Data), unhex(t, f.Frame)
	}
	data = make([]byte, f.DataLen)
	for k := range data {
		data[k] = byte(k % 251)
	}
	sum := sha256.Sum256(data)
	wantHex(t, f.Name+": data", sum[:], f.DataSHA)
	frame, err := sealer.Seal(nil, data, Flags{})
	if err != nil {
		t.Fatalf("%s: Seal: %v", f.Name, err)
	}
	sum = sha256.Sum256(frame[FrameHeaderLen:])
	wantHex(t, f.Name+": AD", frame[:FrameHeaderLen], f.AD)
	wantHex(t, f.Name+": ciphertext", sum[:], f.CipherSHA)
	wantHex(t, f.Name+": tag", frame[len(frame)-tagLen:], f.Tag)
	return data, frame
}

func checkResumed(t *testing.T, c vectorCase, r vectorResumed, tep TEP, aead AEAD) {
	t.Helper()
	sn := unhex(t, r.SN)
	ss := new(secret)
	copy(ss.b[:], unhex(t, c.SS[r.I]))
	wantHex(t, "resumed session_id", idBytes(ss.sessionID(byte(tep)|vBit, sn)), r.SessionID)
	mks := checkKeys(t, aead, ss.masterKey(sn), r.Keys)

	// Both ends come to the same from the two options.
	activeRole := RoleA
	passiveRole := RoleB
	if r.ActiveRole == "B" {
		activeRole, passiveRole = RoleB, RoleA
	}
	known := func(role Role) *Resumable {
		s := new(secret)
		s.b = ss.b
		return &Resumable{secret: s, index: uint64(r.I), tep: tep, aead: aead, role: role}
	}
	ours, theirs := unhex(t, r.NonceA), unhex(t, r.NonceB)
	if activeRole == RoleB {
		ours, theirs = theirs, ours
	}
	optA, optB := unhex(t, r.ActiveOption), unhex(t, r.PassiveOption)
	for _, side := range []struct {
		active bool
		role   Role
		nonce  []byte
	}{{true, activeRole, ours}, {false, passiveRole, theirs}} {
		a, errA := parseENO(optA)
		b, errB := parseENO(optB)
		if err := errors.Join(errA, errB); err != nil {
			t.Fatal(err)
		}
		n := &Negotiation{active: side.active, phase: phaseOffered, mine: b, peer: a, heard: true, nonce: side.nonce}
		if side.active {
			n.mine, n.peer, n.offer = a, b, known(side.role)
		} else {
			n.found = known(side.role)
		}
		n.chosen, n.phase = n.choose(), phaseEncrypted
		if !n.chosen.ok || !n.chosen.resume {
			t.Fatalf("resumption %d as %v: not agreed on", r.I, side.role)
		}
		s, err := n.ResumedSession()
		if err != nil {
			t.Fatal(err)
		}
		wantHex(t, "resumed session_id of "+side.role.String(), idBytes(s.ID()), r.SessionID)
		mine := r.FrameAB
		peer := r.FrameBA
		if side.role == RoleB {
			mine, peer = peer, mine
		}
		got, err := s.Sealer().Seal(nil, unhex(t, mine.Data), Flags{})
		if err != nil {
			t.Fatal(err)
		}
		wantHex(t, "first resumed frame of "+side.role.String(), got, mine.Frame)
		opened, err := s.Opener().Open(unhex(t, peer.Frame))
		if err != nil {
			t.Fatal(err)
		}
		wantHex(t, "first resumed data to "+side.role.String(), opened.Data, peer.Data)
		if next := s.TakeNext(); next == nil || next.Index() != uint64(r.I)+1 {
			t.Errorf("next session secret: %v, want index %d", next, r.I+1)
		} else if r.I+1 < len(c.SS) {
			wantHex(t, "ss[i+1]", next.secret.b[:], c.SS[r.I+1])
		}
		if _, err := n.ResumedSession(); err == nil {
			t.Error("a session secret secured two connections")
		}
	}
	key, err := mks[0].trafficKey(aead, RoleA)
	if err != nil {
		t.Fatal(err)
	}
	wantHex(t, "resumed nonce", key.nonceAt(0), r.FrameAB.Nonce)
}
