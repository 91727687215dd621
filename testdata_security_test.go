package build_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// attacks is how many entries of each letter docs/security.md has: known holes of builders and container runtimes, and what
// tests were made of them.
var attacks = map[string]int{"A": 9, "B": 14, "C": 16, "D": 10, "K": 5, "M": 17, "O": 6, "P": 17, "R": 5}

// namedTest is how docs/security.md names a test: the directory of its package, a function, perhaps a subtest.
var namedTest = regexp.MustCompile("`([a-z/]+)\\.((?:Test|Fuzz)[A-Za-z0-9]+)(?:/([A-Za-z0-9-]+))?`")

// TestEveryAttackHasATest wants of every row of docs/security.md an attack, a defence and tests that exist.
func TestEveryAttackHasATest(t *testing.T) {
	data, err := os.ReadFile("docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`^\| ([A-Z])([0-9]+) \|`)
	seen := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		m := row.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		id := m[1] + m[2]
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 5 {
			t.Errorf("%s: %d cells, want 5: id, known as, attack, defence, tests", id, len(cells))
			continue
		}
		if n, err := strconv.Atoi(m[2]); err != nil || n < 1 || n > attacks[m[1]] {
			t.Errorf("there is no %s", id)
		}
		if seen[id] {
			t.Errorf("%s is there twice", id)
		}
		seen[id] = true
		tests := namedTest.FindAllStringSubmatch(cells[4], -1)
		if len(tests) == 0 {
			t.Errorf("%s names no test", id)
		}
		for _, test := range tests {
			if !testExists(t, test[1], test[2], test[3]) {
				t.Errorf("%s: there is no test %s", id, test[0])
			}
		}
	}
	var missing []string
	for letter, n := range attacks {
		for i := 1; i <= n; i++ {
			if id := letter + strconv.Itoa(i); !seen[id] {
				missing = append(missing, id)
			}
		}
	}
	slices.Sort(missing)
	if len(missing) > 0 {
		t.Errorf("docs/security.md has no %s", strings.Join(missing, " "))
	}
}

// testExists reports whether a package has a test function, and, for a subtest, whether its name is in there as a string or is
// that of a script.
func testExists(t *testing.T, dir, name, sub string) bool {
	t.Helper()
	if dir == "cmd/build" && name == "TestScripts" && sub != "" {
		_, err := os.Stat(fmt.Sprintf("testdata/script/%s.txtar", sub))
		return err == nil
	}
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, path := range files {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || fn.Name.Name != name {
				continue
			}
			found = found || sub == ""
			ast.Inspect(fn, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING && lit.Value == strconv.Quote(sub) {
					found = true
				}
				return true
			})
		}
	}
	return found
}
