package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/lab"
)

// program is the binary under test, absolute.
var program string

func TestMain(m *testing.M) {
	os.Exit(lab.Main(func() int {
		dir, err := os.MkdirTemp("", "tcpcrypt-e2e-")
		if err == nil {
			defer func() { _ = os.RemoveAll(dir) }()
			program, err = build(dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
		return m.Run()
	}))
}

// build makes the binary in dir, as `make build` does, unless there is one already.
func build(dir string) (string, error) {
	if given := os.Getenv("TCPCRYPT_BIN"); given != "" {
		return filepath.Abs(given)
	}
	out := filepath.Join(dir, "tcpcrypt")
	if text, err := exec.Command("go", "build", "-trimpath", "-o", out, "github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, text)
	}
	return out, nil
}
