package tcpcrypt

import (
	"fmt"
	"testing"
)

var benchSizes = []int{1400, 16 << 10, MaxData}

func benchSession(b *testing.B, aead AEAD) (*Sealer, *Opener) {
	b.Helper()
	mk := &secret{b: [keyLen]byte{1}}
	s, err := newSealer(new(generations), mk, aead, RoleA, 0)
	if err != nil {
		b.Fatal(err)
	}
	o, err := newOpener(new(generations), mk, aead, RoleA, 0)
	if err != nil {
		b.Fatal(err)
	}
	return s, o
}

func BenchmarkSeal(b *testing.B) {
	for _, aead := range AEADs() {
		for _, size := range benchSizes {
			b.Run(fmt.Sprintf("aead=%v/size=%d", aead, size), func(b *testing.B) {
				s, _ := benchSession(b, aead)
				plain, dst := make([]byte, size), make([]byte, 0, size+Overhead)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					_, _ = s.Seal(dst, plain, Flags{})
				}
			})
		}
	}
}

// BenchmarkSealInPlace is Seal without the copy.
func BenchmarkSealInPlace(b *testing.B) {
	for _, aead := range AEADs() {
		for _, size := range benchSizes {
			b.Run(fmt.Sprintf("aead=%v/size=%d", aead, size), func(b *testing.B) {
				s, _ := benchSession(b, aead)
				dst := make([]byte, 0, size+Overhead)
				plain := dst[DataOffset : DataOffset+size]
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					_, _ = s.Seal(dst, plain, Flags{})
				}
			})
		}
	}
}

func BenchmarkSealAndOpen(b *testing.B) {
	for _, aead := range AEADs() {
		for _, size := range benchSizes {
			b.Run(fmt.Sprintf("aead=%v/size=%d", aead, size), func(b *testing.B) {
				s, o := benchSession(b, aead)
				plain, dst := make([]byte, size), make([]byte, 0, size+Overhead)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					frame, _ := s.Seal(dst, plain, Flags{})
					if _, err := o.Open(frame); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkKeyExchange(b *testing.B) {
	for _, tep := range TEPs() {
		b.Run("tep="+tep.String(), func(b *testing.B) {
			for b.Loop() {
				o := Outcome{Encrypted: true, TEP: tep, Role: RoleA}
				ka, _ := newKeyExchange(o, nil, DefaultAEADs())
				o.Role = RoleB
				kb, _ := newKeyExchange(o, nil, DefaultAEADs())
				_, init2, _, err := kb.Feed(ka.Start())
				if err == nil {
					_, _, _, err = ka.Feed(init2)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
