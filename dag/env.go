package dag

import (
	"slices"
	"sort"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"build/parser"
)

// env is an ordered set of variables. A variable that is set again moves to the end.
type env struct {
	keys []string
	vals map[string]string
}

func newEnv() *env { return &env{vals: map[string]string{}} }

func (e *env) clone() *env {
	c := &env{keys: slices.Clone(e.keys), vals: make(map[string]string, len(e.vals))}
	for k, v := range e.vals {
		c.vals[k] = v
	}
	return c
}

func (e *env) set(k, v string) {
	e.unset(k)
	e.keys = append(e.keys, k)
	e.vals[k] = v
}

func (e *env) unset(k string) {
	if _, ok := e.vals[k]; ok {
		e.keys = slices.DeleteFunc(e.keys, func(x string) bool { return x == k })
		delete(e.vals, k)
	}
}

// Get and Keys make env what the expansion of words reads variables from.
func (e *env) Get(k string) (string, bool) { v, ok := e.vals[k]; return v, ok }

// Keys lists the names, oldest first.
func (e *env) Keys() []string { return e.keys }

func (e *env) list() []string {
	out := make([]string, len(e.keys))
	for i, k := range e.keys {
		out[i] = k + "=" + e.vals[k]
	}
	return out
}

// setEnv changes the list form kept in an image config, where a variable stays at its place when it is set again.
func setEnv(list []string, k, v string) []string {
	for i, kv := range list {
		if key, _, _ := strings.Cut(kv, "="); key == k {
			list[i] = k + "=" + v
			return list
		}
	}
	return append(list, k+"="+v)
}

// masked shows other values for some variables: those that come from secrets.
type masked struct {
	shell.EnvGetter
	over map[string]string
}

func (m masked) Get(k string) (string, bool) {
	if v, ok := m.over[k]; ok {
		return v, true
	}
	return m.EnvGetter.Get(k)
}

// proxyNames are the build arguments that reach every RUN without being declared, in any mixture of cases.
var proxyNames = []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"}

func proxyEnv(args map[string]string) []string {
	names := make([]string, 0, len(args))
	for k := range args {
		names = append(names, k)
	}
	sort.Strings(names) // of several spellings the last in order wins, as in BuildKit
	var out []string
	for _, p := range proxyNames {
		value := ""
		for _, k := range names {
			if strings.EqualFold(k, p) {
				value = args[k]
			}
		}
		if value != "" {
			out = append(out, p+"="+value, strings.ToLower(p)+"="+value)
		}
	}
	return out
}

// platformArgs are the variables every FROM sees without declaring them. A build argument of the same name overrides each.
func (s *settings) platformArgs(targetStage string) *env {
	if targetStage == "" {
		targetStage = "default"
	}
	b, t := s.BuildPlatform, s.target
	e := newEnv()
	for _, kv := range [][2]string{
		{"BUILDPLATFORM", platforms.Format(b)},
		{"BUILDOS", b.OS},
		{"BUILDOSVERSION", b.OSVersion},
		{"BUILDARCH", b.Architecture},
		{"BUILDVARIANT", b.Variant},
		{"TARGETPLATFORM", platforms.FormatAll(t)},
		{"TARGETOS", t.OS},
		{"TARGETOSVERSION", t.OSVersion},
		{"TARGETARCH", t.Architecture},
		{"TARGETVARIANT", t.Variant},
		{"TARGETSTAGE", targetStage},
	} {
		v := kv[1]
		if given, ok := s.args[kv[0]]; ok {
			v = given
		}
		e.set(kv[0], v)
	}
	return e
}

// globalArgs evaluates the ARG instructions before the first FROM on top of the platform variables.
func (s *settings) globalArgs(f *parser.File, e *env, cmds []instructions.ArgCommand, lex *shell.Lex) error {
	for i := range cmds {
		for _, arg := range cmds[i].Args {
			value := arg.Value
			if given, ok := s.args[arg.Key]; ok {
				value = &given
			} else if value != nil {
				r, err := lex.ProcessWordWithMatches(*value, e)
				if err != nil {
					return f.Error(cmds[i].Location(), err)
				}
				value = &r.Result
			}
			if value != nil {
				e.set(arg.Key, *value)
			}
		}
	}
	return nil
}
