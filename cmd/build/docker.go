package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"build/internal/build"
)

// This file is what happens when the program is called `docker`: through a symlink of that name, earlier on PATH than a
// real docker, existing pipelines need no edit. Building, and what surrounds it, is done here; everything else is handed
// to the real docker when there is one.

// dockerCommands maps docker's words to ours. The longest match wins.
var dockerCommands = map[string][]string{
	"build": {}, "buildx build": {}, "buildx b": {}, "image build": {}, "builder build": {},
	"login":  {"login"},
	"push":   {"push"},
	"images": {"images"},
	"rmi":    {"rmi"},
	"tag":    {"tag"},

	"image push":   {"push"},
	"image ls":     {"images"},
	"image list":   {"images"},
	"image rm":     {"rmi"},
	"image remove": {"rmi"},
	"image tag":    {"tag"},

	"builder prune": {"prune"},
	"buildx prune":  {"prune"},
	"buildx du":     {"du"},
}

// dockerWithout are docker's words that mean more than the store when there is a real docker, and only the store when there is none.
var dockerWithout = map[string][]string{
	"system df":    {"du"},
	"system prune": {"prune"},
	"image prune":  {"prune", "--filter", "type=image"},
}

// dockerAdvice says what to use instead of commands that a real docker would be needed for.
var dockerAdvice = map[string]string{
	"version":           "`build version` prints our version",
	"buildx version":    "`build version` prints our version",
	"pull":              "a build pulls what its FROM lines name; `build --pull` asks the registry again",
	"image pull":        "a build pulls what its FROM lines name; `build --pull` asks the registry again",
	"save":              "`build -o type=docker,dest=FILE` writes an archive that docker load reads",
	"image save":        "`build -o type=docker,dest=FILE` writes an archive that docker load reads",
	"load":              "`build --build-context NAME=docker-archive:FILE` uses an archive as a base",
	"image load":        "`build --build-context NAME=docker-archive:FILE` uses an archive as a base",
	"export":            "`build -o DIR` and `build -o type=tar,dest=FILE` write the files of an image",
	"info":              "there is no daemon to ask; `build version` prints our version",
	"buildx create":     "there are no builders to create, every build runs by itself: leave the command out",
	"buildx use":        "there are no builders to choose from, every build runs by itself: leave the command out",
	"buildx rm":         "there are no builders to remove, every build runs by itself: leave the command out",
	"buildx inspect":    "there are no builders to ask, every build runs by itself: leave the command out",
	"buildx ls":         "there are no builders to list, every build runs by itself: leave the command out",
	"buildx imagetools": "no command of ours does this yet",
	"buildx bake":       "no command of ours does this yet: run `build` once for each target",
	"logout":            "credentials are kept in docker's config.json; remove the entry there",
	"run":               "no command of ours runs containers; podman reads what `build -o type=oci,dest=FILE` writes",
}

// routeDocker turns the arguments of docker into ours, or replaces the process by the real docker.
func (a *app) routeDocker(args []string, g *globalFlags) ([]string, error) {
	rest, notes, err := dockerGlobals(args, g)
	if err != nil {
		return nil, err
	}
	rest, more, err := buildxGlobals(rest)
	if err != nil {
		return nil, err
	}
	notes = append(notes, more...)
	for n := min(2, len(rest)); n > 0; n-- {
		words := strings.Join(rest[:n], " ")
		ours, ok := dockerCommands[words]
		if !ok {
			continue
		}
		for _, note := range notes {
			a.note("%s", note)
		}
		if len(ours) == 0 {
			ours = []string{"build"} // the word keeps a context called like a command a context
		}
		return append(append([]string{}, ours...), rest[n:]...), nil
	}
	if ours, ok := dockerWithout[strings.Join(rest[:min(2, len(rest))], " ")]; ok && a.findDocker() == "" {
		for _, note := range notes {
			a.note("%s", note)
		}
		return append(append([]string{}, ours...), rest[2:]...), nil
	}
	return nil, a.realDocker(rest)
}

// dockerValueFlags are docker's own flags before the command that take a value, and whether they matter to us.
var dockerValueFlags = map[string]bool{
	"config": true, "context": true, "c": true, "host": true, "H": true, "log-level": true, "l": true,
	"tlscacert": true, "tlscert": true, "tlskey": true,
}

// dockerGlobals removes docker's own flags from before the command.
func dockerGlobals(args []string, g *globalFlags) (rest, notes []string, err error) {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && args[0] != "-" {
		name, value, hasValue := strings.Cut(strings.TrimLeft(args[0], "-"), "=")
		typed := args[0]
		if !dockerValueFlags[name] {
			if len(args) == 1 || isDockerQuestion(name) {
				return args, nil, nil // --version, --help and the like: a whole command by itself
			}
			notes = append(notes, typed+" has no effect: there is no daemon to connect to")
			args = args[1:]
			continue
		}
		args = args[1:]
		if !hasValue {
			if len(args) == 0 {
				return nil, nil, usagef("flag %s needs a value", typed)
			}
			value, args = args[0], args[1:]
		}
		if name == "config" {
			g.dockerConfig = value
		} else {
			notes = append(notes, typed+" has no effect: there is no daemon to connect to")
		}
	}
	return args, notes, nil
}

// buildxGlobals removes buildx's own flags from between "buildx" and its command.
func buildxGlobals(args []string) (rest, notes []string, err error) {
	if len(args) == 0 || args[0] != "buildx" {
		return args, nil, nil
	}
	rest = args[1:]
	for len(rest) > 0 && strings.HasPrefix(rest[0], "-") {
		typed := rest[0]
		name, _, hasValue := strings.Cut(strings.TrimLeft(typed, "-"), "=")
		if name != "builder" && name != "debug" && name != "D" {
			break
		}
		rest = rest[1:]
		if name == "builder" && !hasValue {
			if len(rest) == 0 {
				return nil, nil, usagef("flag %s needs a value", typed)
			}
			rest = rest[1:]
		}
		notes = append(notes, typed+" has no effect: there are no builders to choose from, every build runs by itself")
	}
	return append([]string{"buildx"}, rest...), notes, nil
}

func isDockerQuestion(name string) bool {
	switch name {
	case "version", "v", "help", "h":
		return true
	}
	return false
}

// realDocker runs the real docker in place of this process. It returns only when there is none.
func (a *app) realDocker(rest []string) error {
	if path := a.findDocker(); path != "" {
		argv := append([]string{path}, a.args[1:]...)
		if err := syscall.Exec(path, argv, os.Environ()); err != nil {
			return &build.EnvironmentError{Err: fmt.Errorf("run %s: %w", path, err)}
		}
	}
	words := "docker"
	hint := "what we do: docker build, buildx build, login, push, images, rmi, tag, builder prune and buildx du"
	for n := min(2, len(rest)); n > 0; n-- {
		if advice, ok := dockerAdvice[strings.Join(rest[:n], " ")]; ok {
			hint = advice
			break
		}
	}
	if len(rest) > 0 {
		words += " " + strings.Join(rest[:min(2, len(rest))], " ")
	}
	return &build.UsageError{Msg: fmt.Sprintf("%q is not done here, and no other docker is on PATH to do it", words), Hint: hint}
}

// findDocker returns the first docker on PATH that is not this program.
func (a *app) findDocker() string {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return ""
	}
	for _, dir := range filepath.SplitList(a.getenv("PATH")) {
		if !filepath.IsAbs(dir) {
			continue // a docker in the directory of a checkout is not to be run by accident
		}
		path := filepath.Join(dir, "docker")
		st, err := os.Stat(path)
		if err != nil || st.IsDir() || st.Mode()&0o111 == 0 || os.SameFile(st, self) {
			continue
		}
		return path
	}
	return ""
}
