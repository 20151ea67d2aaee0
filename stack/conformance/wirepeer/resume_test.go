package wirepeer

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// TestResumes: from either end, of a session that either end had opened.
func TestResumes(t *testing.T) {
	for _, swapped := range []bool{false, true} {
		for nonce := range maxNonceLen + 1 {
			t.Run(fmt.Sprintf("swapped=%t/nonce=%d", swapped, nonce), func(t *testing.T) {
				ctx := testContext(t)
				cfg := Config{TEPs: []TEP{Curve25519}}
				p := newPair(t, false, func() Script {
					return Script{Answer: func(syn *Segment) []byte { return cfg.Answer(syn) }}
				})
				client, server := p.connect(ctx, t, Script{ENO: cfg.Offer()})
				a, b := sessions(ctx, t, client, server, cfg, cfg)
				one, two := a.Chain(), b.Chain()
				if swapped {
					one, two = two, one
				}
				mine := Config{Resume: one, Nonce: make([]byte, nonce)}
				cfg.Resume = two
				client, server = p.connect(ctx, t, Script{ENO: mine.Offer()})
				a, b = sessions(ctx, t, client, server, mine, cfg)
				if !a.Resumed || !b.Resumed || a.Index != 1 || a.ID[0] != 0xa3 || a.Original == b.Original || a.Original != one.Role {
					t.Errorf("resumed %t %t, i %d, ID %x, original roles %v %v", a.Resumed, b.Resumed, a.Index, a.ID, a.Original, b.Original)
				}
				transfer(ctx, t, a, b, pattern(5000), 100)
				transfer(ctx, t, b, a, pattern(5000), 100)
			})
		}
	}
}

func TestFreshWhereTheOfferIsNotKnown(t *testing.T) {
	ctx := testContext(t)
	cfg := Config{TEPs: []TEP{Curve25519}}
	p := newPair(t, false, func() Script { return Script{Answer: cfg.Answer} })
	client, server := p.connect(ctx, t, Script{ENO: cfg.Offer()})
	a, _ := sessions(ctx, t, client, server, cfg, cfg)
	mine := Config{Resume: a.Chain()}
	client, server = p.connect(ctx, t, Script{ENO: mine.Offer()})
	if a, _ = sessions(ctx, t, client, server, mine, cfg); a.Resumed || a.ID[0] != 0x23 {
		t.Errorf("resumed %t, ID %x", a.Resumed, a.ID)
	}
}

func TestSimultaneousOpen(t *testing.T) {
	ctx := testContext(t)
	p := newPair(t, false, func() Script { return Script{ENO: BuildENO(1, 0x23), Simultaneous: true} })
	client, server := p.connect(ctx, t, Script{ENO: BuildENO(0x23)})
	a, b := sessions(ctx, t, client, server, Config{}, Config{})
	if a.Role != A || b.Role != B {
		t.Errorf("roles %v, %v", a.Role, b.Role)
	}
	transfer(ctx, t, a, b, []byte("x"), 1)
	transfer(ctx, t, b, a, []byte("y"), 1)
}

// TestLinksNothingOfTheProduct: else it would agree with the product's mistakes.
func TestLinksNothingOfTheProduct(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range strings.Fields(string(out)) {
		if strings.HasPrefix(dep, "github.com/tcpcrypt/tcpcrypt/") && !strings.HasSuffix(dep, "/stack/conformance/wirepeer") {
			t.Errorf("links %s", dep)
		}
		if strings.HasPrefix(dep, "gvisor.dev/") {
			t.Errorf("links %s", dep)
		}
	}
}
