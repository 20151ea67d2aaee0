package wirepeer

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

// The vectors were made elsewhere; the product's tests read the same copy.
const vectorsDir = "../../../tcpcrypt/testdata/vectors"

func readVectors(t *testing.T, file string, into any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(vectorsDir, file))
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A hexBytes is a byte string in the vectors' lower-case hex.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	*h = append(hexBytes{}, b...)
	return err
}

func hexNumber[T ~uint8 | ~uint16](t *testing.T, s string) T {
	t.Helper()
	n, err := strconv.ParseUint(s, 16, 16)
	if err != nil {
		t.Fatal(err)
	}
	return T(n)
}

func cipherList(t *testing.T, names []string) []Cipher {
	t.Helper()
	var all []Cipher
	for _, n := range names {
		all = append(all, hexNumber[Cipher](t, n))
	}
	return all
}

// same compares one step's bytes, so that a failure names the step.
func same(t *testing.T, step string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s = %x, want %x", step, got, want)
	}
}

type vectorKeys struct {
	MK  hexBytes `json:"mk"`
	KAB hexBytes `json:"k_ab"`
	KBA hexBytes `json:"k_ba"`
}

type vectorFrame struct {
	Name        string
	Offset      uint64
	Rekey, FinP int
	Urgent      *int
	Nonce, AD   hexBytes
	Flags       hexBytes
	Data        hexBytes
	DataPattern string `json:"data_pattern"`
	DataLen     int    `json:"data_len"`
	Frame       hexBytes
	Sum         hexBytes `json:"ciphertext_sha256"`
}

type vectorSide struct {
	Private, Nonce hexBytes
	PublicWire     hexBytes `json:"public_wire"`
	ENO            hexBytes `json:"eno_option"`
}

type vectorCase struct {
	Name                  string
	TEP, AEAD             string
	Offered               []string `json:"offered_ciphers"`
	A, B                  vectorSide
	Transcript            hexBytes `json:"eno_transcript"`
	Init1, Init2, ES, PRK hexBytes
	SS                    []hexBytes
	Resume                []*struct {
		All hexBytes
	}
	SessionID hexBytes `json:"session_id"`
	Keys      []vectorKeys
	FramesAB  []vectorFrame `json:"frames_ab"`
	FramesBA  []vectorFrame `json:"frames_ba"`
	Resumed   []struct {
		I             int
		Original      string       `json:"active_opener_original_role"`
		NonceA        hexBytes     `json:"nonce_a"`
		NonceB        hexBytes     `json:"nonce_b"`
		ActiveOption  hexBytes     `json:"active_option"`
		PassiveOption hexBytes     `json:"passive_option"`
		SN            hexBytes     `json:"sn"`
		SessionID     hexBytes     `json:"session_id"`
		Keys          []vectorKeys `json:"keys"`
		FrameAB       vectorFrame  `json:"frame_ab"`
		FrameBA       vectorFrame  `json:"frame_ba"`
	}
}

func TestVectorsOfWholeSessions(t *testing.T) {
	var file struct{ Cases []vectorCase }
	readVectors(t, "rfc8548.json", &file)
	if len(file.Cases) == 0 {
		t.Fatal("no cases")
	}
	for i := range file.Cases {
		c := &file.Cases[i]
		t.Run(c.Name, c.test)
	}
}

func (c *vectorCase) test(t *testing.T) {
	tep, aead := hexNumber[TEP](t, c.TEP), hexNumber[Cipher](t, c.AEAD)
	ag, err := Agree(c.A.ENO, c.B.ENO, nil, false, false)
	if err != nil {
		t.Fatal(err)
	}
	if TEP(ag.TEP) != tep || !ag.FirstIsA {
		t.Errorf("negotiated %+v", ag)
	}
	same(t, "eno_transcript", ag.Transcript, c.Transcript)

	pairA, errA := newKeyPair(tep, c.A.Private)
	pairB, errB := newKeyPair(tep, c.B.Private)
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	same(t, "Pub_A", pairA.public, c.A.PublicWire)
	same(t, "Pub_B", pairB.public, c.B.PublicWire)

	m1, err1 := parseInit(c.Init1, init1Magic, tep)
	m2, err2 := parseInit(c.Init2, init2Magic, tep)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if offered := cipherList(t, c.Offered); !slices.Equal(m1.ciphers, offered) || m2.ciphers[0] != aead {
		t.Errorf("ciphers %v, %v; want %v, %v", m1.ciphers, m2.ciphers, offered, aead)
	}
	tail1 := c.Init1[len(BuildInit1(m1.ciphers, c.A.Nonce, pairA.public, nil)):]
	tail2 := c.Init2[len(BuildInit2(aead, c.B.Nonce, pairB.public, nil)):]
	same(t, "Init1", BuildInit1(m1.ciphers, c.A.Nonce, pairA.public, tail1), c.Init1)
	same(t, "Init2", BuildInit2(aead, c.B.Nonce, pairB.public, tail2), c.Init2)

	esA, errA := pairA.shared(m2.public)
	esB, errB := pairB.shared(m1.public)
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	same(t, "ES at A", esA, c.ES)
	same(t, "ES at B", esB, c.ES)
	ss := firstSecret(m1.nonce, ag.Transcript, m1.whole, m2.whole, esA)
	same(t, "PRK", ss, c.PRK)
	id := sessionID(ag.TEPByte, ss, nil)
	same(t, "session_id", id[:], c.SessionID)
	for i, want := range c.SS {
		same(t, fmt.Sprintf("ss[%d]", i), ss, want)
		if r := c.Resume[i]; r != nil {
			id := resumeID(ss)
			same(t, fmt.Sprintf("resume[%d]", i), id[:], r.All)
		}
		ss = nextSecret(ss)
	}
	testKeys(t, c.Keys, masterKey(c.SS[0], nil), aead)
	testFrames(t, c.FramesAB, c.Keys[0].MK, A, aead)
	testFrames(t, c.FramesBA, c.Keys[0].MK, B, aead)

	for i := range c.Resumed {
		r := &c.Resumed[i]
		ag, err := Agree(r.ActiveOption, r.PassiveOption, &Resumable{TEP: byte(tep), ID: resumeID(c.SS[r.I])}, false, false)
		if err != nil {
			t.Fatal(err)
		}
		snA, snB := ag.OfferData[halfLen:], ag.AnswerData[halfLen:]
		if r.Original == "B" {
			snA, snB = snB, snA
		}
		same(t, "nonce_a", snA, r.NonceA)
		same(t, "nonce_b", snB, r.NonceB)
		sn := slices.Concat(snA, snB)
		same(t, "sn", sn, r.SN)
		id := sessionID(ag.TEPByte, c.SS[r.I], sn)
		same(t, "session_id, resumed", id[:], r.SessionID)
		testKeys(t, r.Keys, masterKey(c.SS[r.I], sn), aead)
		testFrames(t, []vectorFrame{r.FrameAB}, r.Keys[0].MK, A, aead)
		testFrames(t, []vectorFrame{r.FrameBA}, r.Keys[0].MK, B, aead)
	}
}

func testKeys(t *testing.T, want []vectorKeys, mk []byte, aead Cipher) {
	t.Helper()
	for j, k := range want {
		same(t, fmt.Sprintf("mk[%d]", j), mk, k.MK)
		same(t, fmt.Sprintf("k_ab[%d]", j), trafficKey(mk, A, aead), k.KAB)
		same(t, fmt.Sprintf("k_ba[%d]", j), trafficKey(mk, B, aead), k.KBA)
		mk = nextMaster(mk)
	}
}

// testFrames seals and opens one direction's frames in order.
func testFrames(t *testing.T, frames []vectorFrame, mk []byte, sender Role, aead Cipher) {
	t.Helper()
	seal, err1 := newDirection(mk, sender, aead, frames[0].Offset)
	open, err2 := newDirection(mk, sender, aead, frames[0].Offset)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	for _, want := range frames {
		if seal.offset != want.Offset {
			t.Fatalf("%s: offset %d, want %d", want.Name, seal.offset, want.Offset)
		}
		data := []byte(want.Data)
		if want.DataPattern != "" {
			for k := range want.DataLen {
				data = append(data, byte(k%251))
			}
		}
		f := Frame{Data: data, FIN: want.FinP == 1, Rekey: want.Rekey == 1, Urgent: want.Urgent}
		if want.AD != nil {
			f.Cres, f.Fres = want.AD[0]&^controlRekey, want.Flags[0]
		}
		got, err := seal.seal(f)
		if err != nil {
			t.Fatal(err)
		}
		same(t, want.Name+": nonce", seal.nonce(want.Offset), want.Nonce)
		if want.Sum != nil {
			sum := sha256.Sum256(got[frameHeaderLen:])
			same(t, want.Name+": hash", sum[:], want.Sum)
		} else {
			same(t, want.Name+": frame", got, want.Frame)
		}
		opened, err := open.open(got)
		if err != nil {
			t.Fatalf("%s: open: %v", want.Name, err)
		}
		if !bytes.Equal(opened.Data, data) || opened.FIN != f.FIN || opened.Rekey != f.Rekey || !sameInt(opened.Urgent, f.Urgent) {
			t.Errorf("%s: opened %+v, sealed %+v", want.Name, opened, f)
		}
	}
}

func sameInt(a, b *int) bool { return a == nil && b == nil || a != nil && b != nil && *a == *b }

type enoVectors struct {
	Parse []struct {
		Option    hexBytes
		IllFormed string `json:"ill_formed"`
		Subs      []struct {
			Global *string
			TEP    string
			V      int
			Data   hexBytes
		}
	}
	ResumeTEP string   `json:"resume_tep"`
	ResumeID  hexBytes `json:"resume_id"`
	Negotiate []struct {
		Name             string
		Option1, Option2 *hexBytes
		Aware1           bool `json:"require_aware1"`
		Aware2           bool `json:"require_aware2"`
		Enabled          bool
		AIs              int `json:"a_is"`
		TEP              string
		TEPByte          string `json:"tep_byte"`
		Mode, Reason     string
		Transcript       hexBytes
	}
	Init []struct {
		Name, Message, TEP, Result string
		Bytes                      hexBytes
		Supported                  []string `json:"ciphers_supported"`
		Offered                    []string `json:"ciphers_offered"`
	}
	Frames []struct {
		Name, AEAD, Sender, Result string
		MK, Frame, Data            hexBytes
		Offset                     uint64
		FinP, Rekey                int
		Urgent                     *int
	}
}

func TestVectorsOfENO(t *testing.T) {
	var v enoVectors
	readVectors(t, "eno.json", &v)
	for _, c := range v.Parse {
		subs, err := ParseENO(c.Option)
		if c.IllFormed != "" {
			if err == nil || err.Error() != c.IllFormed {
				t.Errorf("ParseENO(%x) = %v, want %s", c.Option, err, c.IllFormed)
			}
			continue
		}
		if err != nil || len(subs) != len(c.Subs) {
			t.Errorf("ParseENO(%x) = %v, %v", c.Option, subs, err)
			continue
		}
		for i, want := range c.Subs {
			got := subs[i]
			switch {
			case want.Global != nil:
				if !got.Global || got.TEP != hexNumber[byte](t, *want.Global) {
					t.Errorf("ParseENO(%x): %+v, want global %s", c.Option, got, *want.Global)
				}
			case got.Global || got.TEP != hexNumber[byte](t, want.TEP) || got.V != (want.V == 1) || !bytes.Equal(got.Data, want.Data):
				t.Errorf("ParseENO(%x): %+v, want %+v", c.Option, got, want)
			}
		}
	}
	r := &Resumable{TEP: hexNumber[byte](t, v.ResumeTEP), ID: [18]byte(v.ResumeID)}
	for _, c := range v.Negotiate {
		var option1, option2 []byte
		if c.Option1 != nil {
			option1 = *c.Option1
		}
		if c.Option2 != nil {
			option2 = *c.Option2
		}
		ag, err := Agree(option1, option2, r, c.Aware1, c.Aware2)
		if !c.Enabled {
			if err == nil || err.Error() != c.Reason {
				t.Errorf("%s: %v, want %s", c.Name, err, c.Reason)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		if ag.FirstIsA != (c.AIs == 1) || ag.TEP != hexNumber[byte](t, c.TEP) || ag.TEPByte != hexNumber[byte](t, c.TEPByte) ||
			ag.Resumed != (c.Mode == "resume") || !bytes.Equal(ag.Transcript, c.Transcript) {
			t.Errorf("%s: %+v, want %+v", c.Name, ag, c)
		}
	}
}

func TestVectorsOfInitMessages(t *testing.T) {
	var v enoVectors
	readVectors(t, "eno.json", &v)
	for _, c := range v.Init {
		tep, magic := hexNumber[TEP](t, c.TEP), init1Magic
		if c.Message == "init2" {
			magic = init2Magic
		}
		result := "ok"
		m, err := parseInit(c.Bytes, magic, tep)
		if err == nil {
			if c.Message == "init2" {
				if !slices.Contains(cipherList(t, c.Offered), m.ciphers[0]) {
					err = errNotOffered
				}
			} else {
				_, err = choose(cipherList(t, c.Supported), m.ciphers)
			}
		}
		if err == nil {
			pair, pairErr := newKeyPair(tep, nil)
			if pairErr != nil {
				t.Fatal(pairErr)
			}
			_, err = pair.shared(m.public)
		}
		if err != nil {
			result = err.Error()
		}
		if result != c.Result {
			t.Errorf("%s (%s, %v): %s, want %s", c.Name, c.Message, tep, result, c.Result)
		}
	}
}

func TestVectorsOfBadFrames(t *testing.T) {
	var v enoVectors
	readVectors(t, "eno.json", &v)
	for _, c := range v.Frames {
		d, err := newDirection(c.MK, Role(c.Sender[0]), hexNumber[Cipher](t, c.AEAD), c.Offset)
		if err != nil {
			t.Fatal(err)
		}
		result := "ok"
		f, err := d.open(c.Frame)
		if err != nil {
			result = err.Error()
		}
		if result != c.Result {
			t.Errorf("%s (%s): %s, want %s", c.Name, c.AEAD, result, c.Result)
			continue
		}
		if err == nil && (!bytes.Equal(f.Data, c.Data) || f.FIN != (c.FinP == 1) || f.Rekey != (c.Rekey == 1) || !sameInt(f.Urgent, c.Urgent)) {
			t.Errorf("%s (%s): %+v, want %+v", c.Name, c.AEAD, f, c)
		}
	}
}
