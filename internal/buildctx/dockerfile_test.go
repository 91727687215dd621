package buildctx

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFindDockerfile(t *testing.T) {
	outside := files(t, map[string]string{"Other": "FROM outside\n"})
	ctx := files(t, map[string]string{
		"both/Dockerfile": "1", "both/dockerfile": "2", "both/Containerfile": "3", "lower/dockerfile": "2", "podman/Containerfile": "3",
		"link/Dockerfile": "-> real", "link/real": "4", "abs/real": "5", "sub/My.df": "6", "here": "in the context",
	})
	if err := os.Symlink(filepath.Join(ctx, "abs/real"), filepath.Join(ctx, "abs/Dockerfile")); err != nil {
		t.Fatal(err)
	}
	cwd := files(t, map[string]string{"here": "in the current directory"})
	t.Chdir(cwd)
	for _, c := range []struct{ dir, named, data, path string }{
		{"both", "", "1", "both/Dockerfile"},
		{"lower", "", "2", "lower/dockerfile"},
		{"podman", "", "3", "podman/Containerfile"},
		{"link", "", "4", "link/Dockerfile"},
		{"abs", "", "5", "abs/Dockerfile"},
		{"", "sub/My.df", "6", "sub/My.df"},
		{"", filepath.Join(ctx, "sub/My.df"), "6", "sub/My.df"},
		{"", filepath.Join(outside, "Other"), "FROM outside\n", ""},
		{"", "-", "stdin", ""},
	} {
		df, err := FindDockerfile(filepath.Join(ctx, c.dir), c.named, strings.NewReader("stdin"))
		if err != nil || string(df.Data) != c.data {
			t.Errorf("%+v: %+v, %v", c, df, err)
			continue
		}
		if c.path != "" && (df.Path != filepath.Join(ctx, c.path) || df.IgnoreFile != df.Path+".dockerignore") {
			t.Errorf("%+v: %+v", c, df)
		}
	}
	if df, err := FindDockerfile(ctx, "here", nil); err != nil || string(df.Data) != "in the current directory" {
		t.Errorf("the current directory goes first: %+v, %v", df, err)
	}
	if df, err := FindDockerfileIn(ctx, "/sub/My.df"); err != nil || string(df.Data) != "6" {
		t.Errorf("in the context only: %+v, %v", df, err)
	}
	if _, err := FindDockerfileIn(ctx, "../../../../../../"+cwd+"/here"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("out of the context: %v", err)
	}
}

func TestNoDockerfile(t *testing.T) {
	dir := files(t, map[string]string{"Dockerfile.dev": "x", "Dockerfile.dev.dockerignore": "x", "main.go": "x", "DOCKERFILE": "x", "dockerfiles/": ""})
	_, err := FindDockerfile(dir, "", nil)
	var missing *NoDockerfileError
	if !errors.As(err, &missing) || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), dir) {
		t.Fatal(err)
	}
	if hint := missing.Hint(); hint != "did you mean -f "+dir+"/DOCKERFILE or -f "+dir+"/Dockerfile.dev?" {
		t.Error(hint)
	}
	_, err = FindDockerfile(dir, filepath.Join(dir, "dockerfile"), nil)
	if !errors.As(err, &missing) || missing.Like[0] != dir+"/DOCKERFILE" {
		t.Errorf("%v %+v", err, missing)
	}
	if _, err = FindDockerfile(t.TempDir(), "", nil); !errors.As(err, &missing) || !strings.Contains(missing.Hint(), "-f") {
		t.Error(err)
	}
}

// A context that came from elsewhere lies in a directory the user does not know.
func TestNoDockerfileInAFetchedContext(t *testing.T) {
	dir := files(t, map[string]string{"Dockerfile.dev": "x"})
	for _, named := range []string{"", "other"} {
		_, err := FindDockerfileIn(dir, named)
		var missing *NoDockerfileError
		if !errors.As(err, &missing) || strings.Contains(err.Error()+missing.Hint(), dir) || !strings.Contains(missing.Hint(), "-f Dockerfile.dev") {
			t.Errorf("%v: %+v", err, missing)
		}
	}
}

func TestDockerfileThatLeadsOut(t *testing.T) {
	outside := files(t, map[string]string{"secret": "s", "d/Dockerfile": "x"})
	var escape *EscapeError
	for _, target := range []string{filepath.Join(outside, "secret"), strings.Repeat("../", 20) + "etc/passwd", "/etc/passwd", "/proc/self/environ"} {
		dir := files(t, map[string]string{"Dockerfile": "-> " + target, "sub/Dockerfile": "-> " + target, "X": "x", "X.dockerignore": "-> " + target})
		if _, err := FindDockerfile(dir, "", nil); !errors.As(err, &escape) {
			t.Errorf("%s: %v", target, err)
		}
		for _, named := range []string{filepath.Join(dir, "Dockerfile"), filepath.Join(dir, "sub/../Dockerfile"), filepath.Join(dir, "sub/Dockerfile")} {
			if _, err := FindDockerfile(dir, named, nil); !errors.As(err, &escape) {
				t.Errorf("%s: %v", named, err)
			}
		}
		if _, err := FindDockerfileIn(dir, "sub/Dockerfile"); !errors.As(err, &escape) {
			t.Errorf("%s: %v", target, err)
		}
		if _, err := OpenDir(dir, DirOptions{IgnoreFile: filepath.Join(dir, "X.dockerignore")}); !errors.As(err, &escape) {
			t.Errorf("ignore file to %s: %v", target, err)
		}
	}
	dir := files(t, map[string]string{"d": "-> " + filepath.Join(outside, "d")})
	if _, err := FindDockerfileIn(dir, "d/Dockerfile"); !errors.As(err, &escape) {
		t.Errorf("through a directory: %v", err)
	}
}

func TestOddDockerfiles(t *testing.T) {
	dir := files(t, map[string]string{"Dockerfile/": ""})
	if _, err := FindDockerfile(dir, "", nil); !errors.Is(err, unix.EISDIR) {
		t.Errorf("a directory: %v", err)
	}
	dir = t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "Dockerfile"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := FindDockerfile(dir, "", nil); !errors.Is(err, errNotRegular) {
		t.Errorf("a fifo: %v", err)
	}
	f, err := os.Create(filepath.Join(dir, "huge"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(maxControlFile + 1); err != nil {
		t.Fatal(err)
	}
	if _, err := FindDockerfile(dir, f.Name(), nil); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a huge file: %v", err)
	}
	dir = files(t, map[string]string{"Dockerfile": "-> Dockerfile"})
	if _, err := FindDockerfile(dir, "", nil); err == nil {
		t.Error("a loop is accepted")
	}
}
