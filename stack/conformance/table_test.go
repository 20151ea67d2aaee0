// Package conformance holds the rules of RFC 8547 and RFC 8548 against the tests.
package conformance

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// TestTableNamesTestsThatExist reads docs/conformance.md: each test that it names is
// there, each row has one or a reason, and no test of this package is missing.
func TestTableNamesTestsThatExist(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(root, "docs", "conformance.md"))
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz|Example)[A-Za-z0-9_]*)`")
	tests := make(map[string]map[string]bool) // by package, read once
	named := make(map[string]bool)
	rows := 0
	for i, line := range strings.Split(string(doc), "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != 6 || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| Section") {
			continue
		}
		rows++
		if strings.TrimSpace(cells[4]) == "" || !regexp.MustCompile(`^[MSC]$`).MatchString(strings.TrimSpace(cells[2])) {
			t.Errorf("line %d is no row of the table", i+1)
		}
		for _, m := range name.FindAllStringSubmatch(cells[4], -1) {
			pkg, test := m[1], m[2]
			if tests[pkg] == nil {
				tests[pkg] = testsOf(t, pkg)
			}
			if !tests[pkg][test] {
				t.Errorf("line %d: there is no %s in %s", i+1, test, pkg)
			}
			named[pkg+"."+test] = true
		}
		if rest := name.ReplaceAllString(cells[4], ""); strings.Contains(rest, "`") {
			t.Errorf("line %d: %q names something that is no test", i+1, rest)
		}
	}
	if rows < 80 {
		t.Errorf("%d rows; was the table read?", rows)
	}
	for test := range testsOf(t, "stack/conformance") {
		if strings.HasPrefix(test, "TestRFC") && !named["stack/conformance."+test] {
			t.Errorf("%s is not in the table", test)
		}
	}
}

// testsOf returns the names of the tests of a package below the module.
func testsOf(t *testing.T, pkg string) map[string]bool {
	t.Helper()
	if pkg == "e2e" {
		pkg = "cmd/tcpcrypt/e2e"
	}
	files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(pkg), "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no tests in %s: %v", pkg, err)
	}
	names := make(map[string]bool)
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				names[fn.Name.Name] = true
			}
		}
	}
	return names
}
