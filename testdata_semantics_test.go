package build_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// statements is how many statements there are about the Dockerfile language that are easy to get wrong: S1 to S100.
const statements = 100

// TestEveryStatementHasATest looks for tests named after the statements: subtests, t.Run("S14", …), test functions such as
// TestS14OfSomething, and files in testdata/dockerfiles, S14-name.txtar or, about several, S14-S15-name.txtar.
func TestEveryStatementHasATest(t *testing.T) {
	found := map[int]bool{}
	goldens, err := os.ReadDir("testdata/dockerfiles")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range goldens {
		if name, ok := strings.CutSuffix(e.Name(), ".txtar"); ok {
			note(t, found, e.Name(), statementsOf(name))
		}
	}
	err = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || path != "." && strings.HasPrefix(d.Name(), ".")):
			return filepath.SkipDir
		case strings.HasSuffix(path, "_test.go"):
			return testsOf(t, found, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var missing []string
	for n := 1; n <= statements; n++ {
		if !found[n] {
			missing = append(missing, fmt.Sprintf("S%d", n))
		}
	}
	if len(missing) > 0 {
		t.Errorf("no test is named after %s", strings.Join(missing, " "))
	}
}

// note enters what a test is named after.
func note(t *testing.T, found map[int]bool, where string, numbers []int) {
	t.Helper()
	for _, n := range numbers {
		if n < 1 || n > statements {
			t.Errorf("%s: there is no statement S%d", where, n)
		}
		found[n] = true
	}
}

// statementsOf reads the numbers at the beginning of a file's name: those of "S58-S59-name" are 58 and 59.
func statementsOf(name string) []int {
	var out []int
	for word := range strings.SplitSeq(name, "-") {
		digits, ok := strings.CutPrefix(word, "S")
		n, err := strconv.Atoi(digits)
		if !ok || err != nil {
			break
		}
		out = append(out, n)
	}
	return out
}

var (
	subtestName  = regexp.MustCompile(`^S([0-9]+)$`)
	functionName = regexp.MustCompile(`^TestS([0-9]+)([A-Z].*)?$`)
)

// testsOf notes the test functions and subtests of a file that are named after statements. A subtest whose name is no
// literal, and so cannot be read here, does not count.
func testsOf(t *testing.T, found map[int]bool, path string) error {
	t.Helper()
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	named := func(n ast.Node, re *regexp.Regexp, name string) {
		if m := re.FindStringSubmatch(name); m != nil {
			number, err := strconv.Atoi(m[1])
			if err != nil {
				t.Errorf("%s: %v", set.Position(n.Pos()), err)
			}
			note(t, found, set.Position(n.Pos()).String(), []int{number})
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Recv == nil {
				named(n, functionName, n.Name.Name)
			}
		case *ast.CallExpr:
			sel, ok := n.Fun.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "Run" || len(n.Args) != 2 {
				break
			}
			if lit, ok := n.Args[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if name, err := strconv.Unquote(lit.Value); err == nil {
					named(lit, subtestName, name)
				}
			}
		}
		return true
	})
	return nil
}
