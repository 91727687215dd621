// Package build_test checks the architecture: who may import whom, and rules that hold for every package.
package build_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// may lists, for each package, the packages of this module that it may import. The map is the architecture: add an arrow
// only with a reason that fits in a sentence.
var may = map[string]string{
	"cmd/build":           "internal/build internal/progress internal/userns internal/emulator internal/lazyregexp internal/reference executor",
	"internal/build":      "parser dag cache snapshot executor exporter internal/buildctx internal/emulator internal/explain internal/git internal/leak internal/progress internal/registry internal/sshagent internal/store internal/tree internal/userns internal/cgroup internal/usernet internal/owner internal/turns internal/lazyregexp internal/reference",
	"parser":              "internal/lazyregexp",
	"dag":                 "parser internal/lazyregexp internal/reference",
	"cache":               "internal/store internal/tree",
	"snapshot":            "internal/store internal/tree internal/owner",
	"executor":            "internal/bpf internal/fakeroot internal/owner internal/veth",
	"exporter":            "internal/reference internal/tree",
	"internal/buildctx":   "internal/git internal/tree",
	"internal/explain":    "cache internal/tree internal/lazyregexp",
	"internal/git":        "internal/lazyregexp",
	"internal/leak":       "internal/tree",
	"internal/store":      "",
	"internal/tree":       "",
	"internal/progress":   "",
	"internal/reference":  "",
	"internal/registry":   "internal/reference",
	"internal/sshagent":   "",
	"internal/userns":     "",
	"internal/owner":      "",
	"internal/fakeroot":   "internal/bpf internal/owner",
	"internal/bpf":        "",
	"internal/usernet":    "internal/netlink internal/veth",
	"internal/veth":       "internal/netlink",
	"internal/netlink":    "",
	"internal/cgroup":     "",
	"internal/turns":      "",
	"internal/lazyregexp": "",
	"internal/testenv":    "",
	"internal/torture":    "", // nothing but tests
	"internal/emulator":   "",
	"bench":               "",
	"bench/rungs":         "",
}

// only lists imports from outside that are one package's business, by prefix.
var only = map[string]string{
	"github.com/google/go-containerregistry/pkg/v1/remote": "internal/registry",
	"github.com/spf13/cobra":                               "cmd/build",
	"github.com/moby/buildkit/frontend/dockerfile/parser":  "parser",
	"gvisor.dev/gvisor":                                    "internal/usernet",
	"github.com/distribution/reference":                    "nobody", // a millisecond at every start; internal/reference has what is needed
}

// testsOnly are packages that no program may contain.
var testsOnly = []string{"internal/testenv"}

type goPackage struct {
	Dir        string
	ImportPath string
	GoFiles    []string
	Imports    []string
}

// list returns the packages of this module.
func list(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=Dir,ImportPath,GoFiles,Imports", "./...")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("go list: %v\n%s", err, exit.Stderr)
	} else if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 3 {
		t.Fatalf("go list found %d packages: is this the module's root?", len(pkgs))
	}
	return pkgs
}

const module = "build"

func TestImports(t *testing.T) {
	for _, p := range list(t) {
		name, ok := strings.CutPrefix(p.ImportPath, module+"/")
		if !ok {
			continue // the root holds no code
		}
		allowed, known := may[name]
		if !known {
			t.Errorf("package %s is not in the table: decide what it may import", name)
			continue
		}
		for _, imp := range p.Imports {
			checkImport(t, name, strings.Fields(allowed), imp)
		}
	}
}

func checkImport(t *testing.T, from string, allowed []string, imp string) {
	t.Helper()
	if ours, ok := strings.CutPrefix(imp, module+"/"); ok {
		if !slices.Contains(allowed, ours) {
			t.Errorf("%s imports %s", from, ours)
		}
		if slices.Contains(testsOnly, ours) {
			t.Errorf("%s imports %s, which is for tests", from, ours)
		}
	}
	for prefix, owner := range only {
		if (imp == prefix || strings.HasPrefix(imp, prefix+"/")) && from != owner {
			t.Errorf("%s imports %s: only %s may", from, imp, owner)
		}
	}
}

// beforeMain are the files whose init function has a reason: a step's first process must not wait for the initialization of
// packages that it does not use.
var beforeMain = []string{"executor/init.go"}

// early is what executor may import from outside: packages that are initialized in no time and before others. Look at
// GODEBUG=inittrace=1 before adding one: build/executor must come right after golang.org/x/sys/unix and what that enables. What
// executor imports of this module is held to the same list.
const early = "bufio bytes cmp context encoding/binary encoding/json errors fmt io os path runtime slices strconv strings " +
	"sync sync/atomic syscall time unicode/utf8 unsafe golang.org/x/sys/unix github.com/moby/profiles/seccomp github.com/opencontainers/runtime-spec/specs-go"

func TestStepsStartEarly(t *testing.T) {
	pkgs := list(t)
	todo, seen := []string{module + "/executor"}, map[string]bool{}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		i := slices.IndexFunc(pkgs, func(p goPackage) bool { return p.ImportPath == name })
		if i < 0 || seen[name] {
			continue
		}
		seen[name] = true
		for _, imp := range pkgs[i].Imports {
			if strings.HasPrefix(imp, module+"/") {
				todo = append(todo, imp)
			} else if !slices.Contains(strings.Fields(early), imp) {
				t.Errorf("%s imports %s, which may make every RUN start later", name, imp)
			}
		}
	}
}

// No package works before main, and only cmd/build reads the environment: options carry everything further in.
func TestNoInitAndNoEnvironment(t *testing.T) {
	forbidden := []string{"Getenv", "LookupEnv", "ExpandEnv"}
	for _, p := range list(t) {
		inCommand := strings.HasPrefix(p.ImportPath, module+"/cmd/") || p.ImportPath == module+"/internal/testenv" || p.ImportPath == module+"/bench"
		for _, file := range p.GoFiles {
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, filepath.Join(p.Dir, file), nil, 0)
			if err != nil {
				t.Error(err)
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					known := slices.Contains(beforeMain, strings.TrimPrefix(p.ImportPath, module+"/")+"/"+file)
					if n.Name.Name == "init" && n.Recv == nil && !known {
						t.Errorf("%s: init function", set.Position(n.Pos()))
					}
				case *ast.SelectorExpr:
					x, ok := n.X.(*ast.Ident)
					if ok && x.Name == "os" && slices.Contains(forbidden, n.Sel.Name) && !inCommand {
						t.Errorf("%s: os.%s below cmd/", set.Position(n.Pos()), n.Sel.Name)
					}
				}
				return true
			})
		}
	}
}
