// Command patch writes the generated half of package stack/tcp: gVisor's TCP at
// the version that go.mod pins, with the few changes that touchpoints.go lists.
// Run it with `go generate ./stack/patch`, or through make.
//
// It renames functions and wraps them, and never edits logic: a function F of
// upstream that we extend becomes FUpstream, and a committed file of stack/tcp
// defines F. A unified diff breaks with nearly every upstream snapshot, because
// annotations and neighbouring lines churn; names do not. If a signature changes,
// the wrapper no longer compiles; if a function vanishes, this program fails and
// names the touch point.
//
// The output is deterministic, and a file whose content would not change is left
// alone.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:generate go run . -o ../tcp

const (
	gvisorModule = "gvisor.dev/gvisor"

	// prefix marks generated files, which .gitignore and `make clean` go by.
	prefix = "up_"
)

func main() {
	out := flag.String("o", "../tcp", "directory of package stack/tcp")
	flag.Parse()
	if err := run(*out); err != nil {
		fmt.Fprintln(os.Stderr, "patch:", err)
		os.Exit(1)
	}
}

// run generates the package in dir, the directory of stack/tcp.
func run(dir string) error {
	module, err := findModule()
	if err != nil {
		return err
	}
	files, err := generate(module)
	if err != nil {
		return err
	}
	return write(dir, files)
}

// A module is gVisor as the go command found it.
type module struct {
	Dir     string // empty when it is not in the module cache
	Version string
}

// findModule asks the go command where the pinned gVisor is, fetching it if need be.
func findModule() (module, error) {
	m, err := goModule("list", "-m", "-json", gvisorModule)
	if err == nil && m.Dir == "" {
		m, err = goModule("mod", "download", "-json", gvisorModule)
	}
	if err != nil {
		return module{}, fmt.Errorf("cannot find %s: %w", gvisorModule, err)
	}
	return m, nil
}

func goModule(args ...string) (module, error) {
	cmd := exec.Command("go", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		return module{}, fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	var m module
	if err := json.Unmarshal(b, &m); err != nil {
		return module{}, fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return m, nil
}

// readPackage returns the non-test Go files of a directory by name.
func readPackage(dir string) (map[string][]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files := make(map[string][]byte)
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		files[name] = b
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no Go files in %s", dir)
	}
	return files, nil
}

// write puts files, named relative to dir, in place and removes what an earlier
// run left and this one did not make.
func write(dir string, files map[string][]byte) error {
	stale, err := filepath.Glob(filepath.Join(dir, prefix+"*.go"))
	if err != nil {
		return err
	}
	internal, err := filepath.Glob(filepath.Join(dir, "internal", "*", "*.go"))
	if err != nil {
		return err
	}
	for _, path := range append(stale, internal...) {
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if _, ok := files[filepath.ToSlash(rel)]; ok {
			continue
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	for name, content := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
			continue
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
