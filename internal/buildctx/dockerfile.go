package buildctx

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Dockerfile is a Dockerfile that was found and read.
type Dockerfile struct {
	Name       string // for messages: as the user named it, or the default name it has
	Path       string // where it is; "" for standard input
	Data       []byte
	IgnoreFile string // the ignore file that goes with it, whether it exists or not; "" for standard input
}

// defaultNames are looked for in the context, in this order, when no Dockerfile is named.
var defaultNames = []string{"Dockerfile", "dockerfile", "Containerfile"}

// NoDockerfileError says that there is no Dockerfile where one was looked for.
type NoDockerfileError struct {
	Dir   string   // the context; "" when it came from elsewhere and the user knows of no directory
	Named string   // as the user named it, "" when the default names were tried
	Like  []string // files that may be meant
}

func (e *NoDockerfileError) Error() string {
	switch {
	case e.Dir == "" && e.Named != "":
		return fmt.Sprintf("no Dockerfile %q in the context", e.Named)
	case e.Dir == "":
		return fmt.Sprintf("no Dockerfile in the context: looked for %s", strings.Join(defaultNames, ", "))
	case e.Named != "":
		return fmt.Sprintf("no Dockerfile %q, neither in the current directory nor in the context %s", e.Named, e.Dir)
	}
	return fmt.Sprintf("no Dockerfile in %s: looked for %s", e.Dir, strings.Join(defaultNames, ", "))
}

// Hint says what to do about it.
func (e *NoDockerfileError) Hint() string {
	if len(e.Like) > 0 {
		return "did you mean -f " + strings.Join(e.Like, " or -f ") + "?"
	}
	return "name it with -f, or pass the directory it is in as the last argument"
}

// Unwrap lets errors.Is find fs.ErrNotExist.
func (e *NoDockerfileError) Unwrap() error { return fs.ErrNotExist }

// FindDockerfile reads the Dockerfile of a build whose context is dir. A named one is looked for relative to the current
// directory first and then in the context, and may lie anywhere; "-" is stdin. One in the context that is a symlink
// leading out of it is refused.
func FindDockerfile(dir, named string, stdin io.Reader) (*Dockerfile, error) {
	switch named {
	case "":
		return findDefault(dir, dir)
	case "-":
		data, err := readLimited(stdin, "the Dockerfile on standard input")
		if err != nil {
			return nil, fmt.Errorf("read the Dockerfile from standard input: %w", err)
		}
		return &Dockerfile{Name: "Dockerfile", Data: data}, nil
	}
	if _, err := os.Lstat(named); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return readNamed(dir, named, named)
	}
	if !filepath.IsAbs(named) {
		if path := filepath.Join(dir, named); exists(path) {
			return readNamed(dir, named, path)
		}
	}
	// As in BuildKit, where the default name is spelled out the lower-case one will do.
	if lower := filepath.Join(filepath.Dir(named), "dockerfile"); filepath.Base(named) == "Dockerfile" && exists(lower) {
		return readNamed(dir, lower, lower)
	}
	return nil, &NoDockerfileError{Dir: dir, Named: named, Like: lookalikes(filepath.Dir(named), filepath.Dir(named), named)}
}

// FindDockerfileIn is FindDockerfile for a context that came from elsewhere: everything is in it.
func FindDockerfileIn(dir, named string) (*Dockerfile, error) {
	if named == "" {
		return findDefault(dir, "")
	}
	rel := strings.TrimPrefix(filepath.Clean("/"+named), "/")
	path := filepath.Join(dir, rel)
	if !exists(path) {
		return nil, &NoDockerfileError{Named: named, Like: lookalikes(filepath.Dir(path), filepath.Dir(rel), rel)}
	}
	data, err := readConfined(dir, rel)
	if err != nil {
		return nil, fmt.Errorf("read Dockerfile: %w", err)
	}
	return &Dockerfile{Name: named, Path: path, Data: data, IgnoreFile: path + ignoreName}, nil
}

// exists reports whether there may be something at path: what cannot be looked at is found out by reading it.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// findDefault reads the Dockerfile that has a default name; shown is what the user calls dir.
func findDefault(dir, shown string) (*Dockerfile, error) {
	for _, name := range defaultNames {
		path := filepath.Join(dir, name)
		if !exists(path) {
			continue
		}
		data, err := readConfined(dir, name)
		if err != nil {
			return nil, fmt.Errorf("read Dockerfile: %w", err)
		}
		return &Dockerfile{Name: name, Path: path, Data: data, IgnoreFile: path + ignoreName}, nil
	}
	return nil, &NoDockerfileError{Dir: shown, Like: lookalikes(dir, shown, "")}
}

// readNamed reads a Dockerfile the user named, wherever it is.
func readNamed(dir, named, path string) (*Dockerfile, error) {
	data, err := readSpecific(dir, path)
	if err != nil {
		return nil, fmt.Errorf("read Dockerfile: %w", err)
	}
	return &Dockerfile{Name: named, Path: path, Data: data, IgnoreFile: path + ignoreName}, nil
}

const maxLike = 3

// lookalikes lists files in a directory that could be a Dockerfile, best first, shown as in the directory named shown.
func lookalikes(dir, shown, named string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		name := e.Name()
		lower := strings.ToLower(name)
		if e.IsDir() || strings.HasSuffix(lower, ignoreName) {
			continue
		}
		same := named != "" && strings.EqualFold(name, filepath.Base(named))
		if same || strings.Contains(lower, "dockerfile") || strings.Contains(lower, "containerfile") {
			path := filepath.Join(shown, name)
			if same {
				out = slices.Insert(out, 0, path)
			} else {
				out = append(out, path)
			}
		}
	}
	return out[:min(len(out), maxLike)]
}
