package tcpcrypt

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"testing"
)

type vectorsENO struct {
	Parse []struct {
		Option    string `json:"option"`
		IllFormed string `json:"ill_formed"`
		Subs      []struct {
			Global *string `json:"global"`
			TEP    string  `json:"tep"`
			V      int     `json:"v"`
			Data   string  `json:"data"`
		} `json:"subs"`
	} `json:"parse"`
	ResumeTEP string `json:"resume_tep"`
	ResumeID  string `json:"resume_id"`
	Negotiate []struct {
		Name          string  `json:"name"`
		Option1       *string `json:"option1"`
		Option2       *string `json:"option2"`
		RequireAware1 bool    `json:"require_aware1"`
		RequireAware2 bool    `json:"require_aware2"`
		Enabled       bool    `json:"enabled"`
		AIs           int     `json:"a_is"`
		TEP           string  `json:"tep"`
		TEPByte       string  `json:"tep_byte"`
		Mode          string  `json:"mode"`
		Transcript    string  `json:"transcript"`
		Reason        string  `json:"reason"`
	} `json:"negotiate"`
	Init []struct {
		Name      string   `json:"name"`
		Message   string   `json:"message"`
		TEP       string   `json:"tep"`
		Bytes     string   `json:"bytes"`
		Supported []string `json:"ciphers_supported"`
		Offered   []string `json:"ciphers_offered"`
		Result    string   `json:"result"`
	} `json:"init"`
	Frames []struct {
		Name   string  `json:"name"`
		AEAD   string  `json:"aead"`
		MK     string  `json:"mk"`
		Sender string  `json:"sender"`
		Offset uint64  `json:"offset"`
		Frame  string  `json:"frame"`
		Result string  `json:"result"`
		Data   string  `json:"data"`
		FINp   int     `json:"finp"`
		Urgent *uint16 `json:"urgent"`
		Rekey  int     `json:"rekey"`
	} `json:"frames"`
}

func readENO(t *testing.T) (v vectorsENO) {
	t.Helper()
	readVectors(t, "eno.json", &v)
	return v
}

func TestVectorsParse(t *testing.T) {
	v := readENO(t)
	if len(v.Parse) != 195 {
		t.Fatalf("%d options, want 195", len(v.Parse))
	}
	for _, p := range v.Parse {
		raw := unhex(t, p.Option)
		o, err := parseENO(raw)
		if (err != nil) != (p.IllFormed != "") {
			t.Errorf("parseENO(%s): %v, want %q", p.Option, err, p.IllFormed)
			continue
		}
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("parseENO(%s): %v is not ErrMalformed", p.Option, err)
			}
			continue
		}
		var got, want []string
		for _, s := range o.subs {
			got = append(got, fmt.Sprintf("%02x %v %x", s.glt, s.v, s.data))
		}
		for _, s := range p.Subs {
			if s.Global != nil {
				want = append(want, *s.Global+" false ")
			} else {
				want = append(want, fmt.Sprintf("%s %v %s", s.TEP, s.V == 1, s.Data))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("parseENO(%s) = %q, want %q", p.Option, got, want)
		}
	}
}

// TestVectorsNegotiate decides each pair of options as the active opener that sent the
// first, and as whoever sent the second.
func TestVectorsNegotiate(t *testing.T) {
	v := readENO(t)
	id := unhex(t, v.ResumeID)
	fits := func(tep TEP, a, b []byte) bool {
		first, last := id[:halfLen], id[halfLen:]
		return tep == TEP(unhexInt(t, v.ResumeTEP)) &&
			(bytes.Equal(a[:halfLen], first) && bytes.Equal(b[:halfLen], last) ||
				bytes.Equal(a[:halfLen], last) && bytes.Equal(b[:halfLen], first))
	}
	if len(v.Negotiate) != 51 {
		t.Fatalf("%d negotiations, want 51", len(v.Negotiate))
	}
	reasons := map[string]Reason{"no-common-tep": ReasonNoCommonTEP, "same-role": ReasonSameRole}
	for _, n := range v.Negotiate {
		t.Run(n.Name, func(t *testing.T) {
			var one, two enoOption
			var err1, err2 error
			if n.Option1 == nil || n.Option2 == nil {
				if n.Enabled {
					t.Fatal("vector without option is enabled")
				}
				return // nothing to choose from; TestPeerWithoutENO has this
			}
			one, err1 = parseENO(unhex(t, *n.Option1))
			two, err2 = parseENO(unhex(t, *n.Option2))
			if ill := errors.Join(err1, err2) != nil; ill || n.Reason == "ill-formed" {
				if !ill || n.Reason != "ill-formed" {
					t.Fatalf("parse: %v, %v; want reason %q", err1, err2, n.Reason)
				}
				return
			}
			c := choose(one, two, fits)
			aware := !n.RequireAware1 || two.global()&awareBit != 0
			aware = aware && (!n.RequireAware2 || one.global()&awareBit != 0)
			if n.Reason == "not-application-aware" {
				if aware || !c.ok {
					t.Fatalf("aware %v, choose %+v; want the bit alone to fail", aware, c)
				}
				return
			}
			if c.ok != n.Enabled {
				t.Fatalf("choose = ok %v, reason %s; want %v", c.ok, c.reason, n.Enabled)
			}
			if !c.ok {
				if c.reason != reasons[n.Reason] {
					t.Errorf("reason %q, want %q", c.reason, n.Reason)
				}
				return
			}
			got := &Negotiation{phase: phaseEncrypted, chosen: c, mine: one, peer: two}
			o, _ := got.Outcome()
			if (o.Role == RoleA) != (n.AIs == 1) || o.TEP != TEP(unhexInt(t, n.TEP)) ||
				o.TEPByte != byte(unhexInt(t, n.TEPByte)) || o.Resumed != (n.Mode == "resume") {
				t.Errorf("outcome %+v, want A %d, TEP %s, byte %s, %s", o, n.AIs, n.TEP, n.TEPByte, n.Mode)
			}
			wantHex(t, "transcript", got.transcript(), n.Transcript)
		})
	}
}

// TestVectorsNegotiateEndToEnd gives the options to a Negotiation that has sent the one
// and receives the other, at either end, in a TCP header as it comes.
func TestVectorsNegotiateEndToEnd(t *testing.T) {
	v := readENO(t)
	// The vectors give an identifier without the secret that it comes from: one of
	// ours stands in for it.
	var known secret
	resume := map[Role]*Resumable{}
	for _, role := range []Role{RoleA, RoleB} {
		resume[role] = &Resumable{secret: &known, tep: TEP(unhexInt(t, v.ResumeTEP)), role: role}
	}
	ours, theirs := known.identifier(), unhex(t, v.ResumeID)
	option := func(hex string) []byte {
		b := bytes.ReplaceAll(unhex(t, hex), theirs[:halfLen], ours[:halfLen])
		return bytes.ReplaceAll(b, theirs[halfLen:], ours[halfLen:])
	}
	reasons := map[string]Reason{"no-common-tep": ReasonNoCommonTEP, "same-role": ReasonSameRole,
		"not-application-aware": ReasonPolicy, "no-option": ReasonNoENO, "ill-formed": ReasonNoENO}
	for _, vec := range v.Negotiate {
		for _, end := range []struct {
			name       string
			mine, peer *string
			require    bool
			role       int
		}{{"1", vec.Option1, vec.Option2, vec.RequireAware1, 1}, {"2", vec.Option2, vec.Option1, vec.RequireAware2, 2}} {
			t.Run(vec.Name+"/"+end.name, func(t *testing.T) {
				if end.mine == nil {
					return // this end has nothing to negotiate with
				}
				mine, err := parseENO(option(*end.mine))
				if err != nil {
					return // nor this one: we never send such
				}
				n := &Negotiation{o: Options{RequireApplicationAware: end.require}, active: true, phase: phaseOffered, mine: mine}
				for _, r := range resume {
					own, _ := r.halves()
					if sub, ok := mine.find(r.tep); ok && sub.resumes() && own == [halfLen]byte(sub.data) {
						n.offer = &Resumable{secret: new(secret), tep: r.tep, role: r.role} // known is all zero
					}
				}
				opts := area()
				if end.peer != nil {
					opts = area(option(*end.peer))
				}
				n.ReceiveACK(opts, true)
				o, ok := n.Outcome()
				if !ok {
					t.Fatal("not decided")
				}
				// A demand of the peer's is not ours to see.
				if vec.Reason == "not-application-aware" && !end.require {
					return
				}
				if o.Encrypted != vec.Enabled || o.Encrypted == (o.Reason != "") || !vec.Enabled && o.Reason != reasons[vec.Reason] {
					t.Fatalf("outcome %+v, want enabled %v, %q", o, vec.Enabled, vec.Reason)
				}
				if vec.Enabled && ((o.Role == RoleA) != (vec.AIs == end.role) || o.TEP != TEP(unhexInt(t, vec.TEP)) ||
					o.TEPByte != byte(unhexInt(t, vec.TEPByte)) || o.Resumed != (vec.Mode == "resume")) {
					t.Errorf("outcome %+v, want A %d, TEP %s, byte %s, %s", o, vec.AIs, vec.TEP, vec.TEPByte, vec.Mode)
				}
			})
		}
	}
}

func TestVectorsInit(t *testing.T) {
	v := readENO(t)
	if len(v.Init) != 93 {
		t.Fatalf("%d messages, want 93", len(v.Init))
	}
	results := map[string]error{
		"init-too-short": ErrMalformed, "init-too-long": ErrMalformed, "bad-magic": ErrBadMagic,
		"bad-point": ErrBadPublicKey, "bad-pubkey-length": ErrBadPublicKey, "zero-shared-secret": ErrZeroSharedSecret,
		"no-ciphers": ErrNoCommonAEAD, "no-common-cipher": ErrNoCommonAEAD, "cipher-not-offered": ErrNotOffered,
	}
	for _, m := range v.Init {
		t.Run(m.TEP+" "+m.Message+" "+m.Name, func(t *testing.T) {
			whole := unhex(t, m.Bytes)
			// At once, and byte by byte: it must make no difference.
			for _, step := range []int{len(whole) + 1, 1} {
				o := Outcome{Encrypted: true, Role: RoleB, TEP: TEP(unhexInt(t, m.TEP))}
				as := aeads(t, m.Supported)
				if m.Message == "init2" {
					o.Role, as = RoleA, aeads(t, m.Offered)
				}
				kx, err := newKeyExchange(o, nil, as)
				if err != nil {
					t.Fatal(err)
				}
				kx.Start()
				done, used := false, 0
				for used < len(whole) && !done && err == nil {
					var n int
					n, _, done, err = kx.Feed(whole[used:min(used+step, len(whole))])
					used += n
				}
				switch m.Result {
				case "ok":
					if err != nil || !done {
						t.Errorf("step %d: done %v, %v", step, done, err)
					}
				case "incomplete":
					if err != nil || done {
						t.Errorf("step %d: done %v, %v; want to wait", step, done, err)
					}
				default:
					want := results[m.Result]
					if want == nil {
						t.Fatalf("unknown result %q", m.Result)
					}
					if !errors.Is(err, want) || kx.Session() != nil {
						t.Errorf("step %d: %v, want %v", step, err, want)
					}
					if _, _, _, again := kx.Feed([]byte{1}); !errors.Is(again, want) {
						t.Errorf("step %d: the error did not stick: %v", step, again)
					}
				}
			}
		})
	}
}

func TestVectorsFrames(t *testing.T) {
	v := readENO(t)
	if len(v.Frames) != 66 {
		t.Fatalf("%d frames, want 66", len(v.Frames))
	}
	results := map[string]error{"auth-failure": ErrAuth, "frame-too-short": ErrMalformed, "plaintext-too-short": ErrMalformed}
	for _, f := range v.Frames {
		t.Run(f.AEAD+" "+f.Name, func(t *testing.T) {
			mk := new(secret)
			copy(mk.b[:], unhex(t, f.MK))
			role := RoleA
			if f.Sender == "B" {
				role = RoleB
			}
			var gen generations
			o, err := newOpener(&gen, mk, AEAD(unhexInt(t, f.AEAD)), role, f.Offset)
			if err != nil {
				t.Fatal(err)
			}
			got, err := o.Open(unhex(t, f.Frame))
			if f.Result != "ok" {
				want := results[f.Result]
				if want == nil {
					t.Fatalf("unknown result %q", f.Result)
				}
				if !errors.Is(err, want) || got.Data != nil {
					t.Errorf("Open: %v, want %v", err, want)
				}
				if _, again := o.Open(unhex(t, f.Frame)); !errors.Is(again, want) {
					t.Errorf("the error did not stick: %v", again)
				}
				if err := o.EndOfStream(); err == nil {
					t.Error("a broken stream ended well")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if hex.EncodeToString(got.Data) != f.Data || got.FIN != (f.FINp == 1) || got.Rekeyed != (f.Rekey == 1) ||
				got.HasUrgent != (f.Urgent != nil) || f.Urgent != nil && got.Urgent != *f.Urgent {
				t.Errorf("Open = %+v, want %+v", got, f)
			}
		})
	}
}
