package stack_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/stack/tcp"
	"github.com/tcpcrypt/tcpcrypt/stack/tcp/tcptest"
	"github.com/tcpcrypt/tcpcrypt/tcpcrypt"
)

// BenchmarkBulkENO sends one stream over a link in memory that takes super-segments, in
// clear through upstream's endpoints and encrypted with each AEAD.
func BenchmarkBulkENO(b *testing.B) {
	const chunk = 128 << 10
	bench := func(name string, o tcptest.Options) {
		b.Run(name, func(b *testing.B) {
			o.Offload = true
			c, s := enoConnect(b, tcptest.New(b, o), tcptest.B4, false)
			errc := make(chan error, 1)
			go func() {
				buf := make([]byte, chunk)
				for {
					if _, err := s.Read(buf); err != nil {
						if errors.Is(err, io.EOF) {
							err = nil
						}
						errc <- err
						return
					}
				}
			}()
			data := make([]byte, chunk)
			b.SetBytes(chunk)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if _, err := c.Write(data); err != nil {
					b.Fatal(err)
				}
			}
			if err := errors.Join(c.CloseWrite(), <-errc); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			c.Close()
			s.Close()
		})
	}
	bench("aead=none", tcptest.Options{})
	for _, aead := range tcpcrypt.AEADs() {
		x := &enoExtension{options: tcpcrypt.Options{AEADs: []tcpcrypt.AEAD{aead}}}
		bench(fmt.Sprintf("aead=%s", aead), tcptest.Options{A: tcp.NewProtocolWithExtension(x), B: tcp.NewProtocolWithExtension(x)})
	}
}
