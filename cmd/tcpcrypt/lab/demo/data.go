package main

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/rand/v2"
)

const (
	dataSize = 100 << 20 // bytes, each way
	pageSize = 4 << 10   // bytes; each page begins with marker
)

// marker is what the wire is searched for. There are 25,600 of them in each transfer.
const marker = "plaintext of the tcpcrypt demo, not for anybody's eyes"

// writeData writes the data that all transfers consist of: the marker, and bytes that
// look random and are the same each time.
func writeData(w io.Writer) error {
	random := rand.NewChaCha8([32]byte([]byte("any seed is as good as any other")))
	page := make([]byte, pageSize)
	copy(page, marker)
	for range dataSize / pageSize {
		_, _ = random.Read(page[len(marker):]) // documented never to fail
		if _, err := w.Write(page); err != nil {
			return err
		}
	}
	return nil
}

// dataSum is the checksum of the data.
func dataSum() string {
	h := sha256.New()
	_ = writeData(h) // a hash does not fail
	return hex.EncodeToString(h.Sum(nil))
}
