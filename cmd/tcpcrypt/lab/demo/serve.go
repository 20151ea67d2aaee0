package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"strconv"
	"time"
)

// serve is an ordinary web server: GET gives the data, PUT takes any and answers with
// its checksum.
func serve() error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /data", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(dataSize))
		buffered := bufio.NewWriterSize(w, 256<<10)
		// An error is the client's going away, and the client's to tell.
		if err := writeData(buffered); err == nil {
			_ = buffered.Flush()
		}
	})
	mux.HandleFunc("PUT /upload", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		if _, err := io.CopyBuffer(sum, r.Body, make([]byte, 256<<10)); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = io.WriteString(w, hex.EncodeToString(sum.Sum(nil)))
	})
	server := &http.Server{Addr: ":80", Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	return server.ListenAndServe()
}
