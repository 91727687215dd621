package dag

import (
	"path"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/buildkit/util/suggest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/lazyregexp"
	"build/parser"
)

// This file holds the lint rules that need what lowering knows: variables, configs and platforms. They never change
// what is built. A comment "# check=skip=RULE" above an instruction counts for that instruction: l.lint is the linter of
// the file, l.here that of the instruction being lowered.

// found keeps a warning of the linter, once: a word that is expanded twice must not be reported twice.
func (l *lowering) found(w parser.Warning) {
	if !slices.Contains(l.warnings, w) {
		l.warnings = append(l.warnings, w)
	}
}

// lintDefaults warns of a FROM that names no image unless build arguments are given.
func (l *lowering) lintDefaults(target string, stages []instructions.Stage, meta []instructions.ArgCommand) {
	bare := *l.settings
	global := bare.platformArgs(target)
	bare.args = nil
	if err := bare.globalArgs(l.file, global, meta, l.lex); err != nil {
		return // reported when the arguments are evaluated in earnest
	}
	rule := &linter.RuleInvalidDefaultArgInFrom
	for _, st := range stages {
		m, err := l.lex.ProcessWordWithMatches(st.BaseName, global)
		if err != nil {
			return
		}
		if _, err := l.parseName(m.Result); err != nil {
			l.lint.Run(rule, st.Location, rule.Format(st.BaseName))
		}
	}
}

// globalNames lists what FROM may refer to, with and without a value.
func (l *lowering) globalNames(meta []instructions.ArgCommand) []string {
	names := slices.Clone(l.global.Keys())
	for _, c := range meta {
		for _, a := range c.Args {
			names = append(names, a.Key)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// lintFromArgs warns of variables in FROM that nobody declares.
func (l *lowering) lintFromArgs(st *instructions.Stage, unmatched map[string]struct{}) {
	rule := &linter.RuleUndefinedArgInFrom
	for _, name := range sortedKeys(unmatched) {
		if _, declared := slices.BinarySearch(l.declared, name); declared {
			continue
		}
		near, _ := suggest.Search(name, l.declared, true)
		l.here.Run(rule, st.Location, rule.Format(name, near))
	}
}

// lintFromPlatform judges the value of FROM --platform.
func (l *lowering) lintFromPlatform(st *instructions.Stage, m shell.ProcessWordResult) {
	l.lintFromArgs(st, m.Unmatched)
	if len(m.Matched) == 1 && len(m.Unmatched) == 0 {
		const name = "TARGETPLATFORM"
		_, named := m.Matched[name]
		if target, _ := l.global.Get(name); named && m.Result == target {
			l.here.Run(&linter.RuleRedundantTargetPlatform, st.Location, linter.RuleRedundantTargetPlatform.Format(st.Platform))
		}
	}
	if len(m.Matched) > 0 || len(m.Unmatched) > 0 {
		return
	}
	p, err := platforms.Parse(m.Result)
	if err != nil || strings.Contains(st.Name, p.OS) || strings.Contains(st.Name, p.Architecture) {
		return // wrong, which is an error, or a stage whose name says that it is for this platform
	}
	l.here.Run(&linter.RuleFromPlatformFlagConstDisallowed, st.Location, linter.RuleFromPlatformFlagConstDisallowed.Format(m.Result))
}

// lintBasePlatform warns of an image that is not for the platform it was looked up for. It counts for the whole file.
func (l *lowering) lintBasePlatform(d *stage, want, got ocispec.Platform) {
	if want.OS == got.OS && want.Architecture == got.Architecture {
		return
	}
	rule := &linter.RuleInvalidBaseImagePlatform
	l.lint.Run(rule, d.Location, rule.Format(d.BaseName, platformText(want), platformText(got)))
}

func platformText(p ocispec.Platform) string { return platforms.FormatAll(platforms.Normalize(p)) }

// lintVars warns of variables in an instruction that are not set and not declared.
func (l *lowering) lintVars(d *stage, c instructions.Command, unmatched map[string]struct{}) {
	if len(unmatched) == 0 {
		return
	}
	rule := &linter.RuleUndefinedVar
	for _, name := range sortedKeys(unmatched) {
		declared := slices.ContainsFunc(d.state.args, func(a buildArg) bool { return a.key == name })
		if declared || name == argScanContext || name == argScanStage {
			continue
		}
		near, _ := suggest.Search(name, d.state.env.Keys(), true)
		l.here.Run(rule, c.Location(), rule.Format(name, near))
	}
}

// lintInstruction applies the rules that look at one expanded instruction and the stage before it.
func (l *lowering) lintInstruction(d *stage, cmd instructions.Command) {
	switch c := cmd.(type) {
	case *instructions.EnvCommand:
		for _, kv := range c.Env {
			l.lintLegacy(c, kv.NoDelim)
			l.lintSecret("ENV", kv.Key, c)
		}
	case *instructions.LabelCommand:
		for _, kv := range c.Labels {
			l.lintLegacy(c, kv.NoDelim)
		}
	case *instructions.ArgCommand:
		for _, a := range c.Args {
			l.lintSecret("ARG", a.Key, c)
		}
	case *instructions.WorkdirCommand:
		if !d.state.dirSet && !path.IsAbs(c.Path) {
			l.here.Run(&linter.RuleWorkdirRelativePath, c.Location(), linter.RuleWorkdirRelativePath.Format(c.Path))
		}
		d.state.dirSet = true
	case *instructions.CmdCommand:
		l.lintOnce(&d.lastCmd, c)
		l.lintShellForm(d, c, c.PrependShell)
	case *instructions.EntrypointCommand:
		l.lintOnce(&d.lastEntrypoint, c)
		l.lintShellForm(d, c, c.PrependShell)
	case *instructions.HealthCheckCommand:
		l.lintOnce(&d.lastHealth, c)
	}
}

func (l *lowering) lintLegacy(c instructions.Command, noDelim bool) {
	if noDelim {
		l.here.Run(&linter.RuleLegacyKeyValueFormat, c.Location(), linter.RuleLegacyKeyValueFormat.Format(c.Name()))
	}
}

var (
	secretName = lazyregexp.New(`(?i)(_|^)(apikey|auth|credentials?|key|password|pword|passwd|secret|token)(_|$)`)
	publicName = lazyregexp.New(`(?i)(_|^)(public|file|version)(_|$)`)
)

// SecretName reports whether a variable is called as if its value were a secret.
func SecretName(key string) bool {
	return secretName().MatchString(key) && !publicName().MatchString(key)
}

// lintSecret warns of names that look as if their value were a secret.
func (l *lowering) lintSecret(instruction, key string, c instructions.Command) {
	if SecretName(key) {
		l.here.Run(&linter.RuleSecretsUsedInArgOrEnv, c.Location(), linter.RuleSecretsUsedInArgOrEnv.Format(instruction, key))
	}
}

// lintOnce warns of an instruction that a later one of its stage makes pointless, at the place of the pointless one.
func (l *lowering) lintOnce(last *instructions.Command, c instructions.Command) {
	if *last != nil {
		rule := &linter.RuleMultipleInstructionsDisallowed
		l.here.Run(rule, (*last).Location(), rule.Format(c.Name()))
	}
	*last = c
}

func (l *lowering) lintShellForm(d *stage, c instructions.Command, shellForm bool) {
	if shellForm && len(d.state.img.Config.Shell) == 0 {
		l.here.Run(&linter.RuleJSONArgsRecommended, c.Location(), linter.RuleJSONArgsRecommended.Format(c.Name()))
	}
}

// lintPort warns of ports that are written in a way that has no meaning in EXPOSE.
func (l *lowering) lintPort(c instructions.Command, spec string) {
	host, hostPort, port := splitPort(spec)
	if _, proto, _ := strings.Cut(port, "/"); proto != strings.ToLower(proto) {
		l.here.Run(&linter.RuleExposeProtoCasing, c.Location(), linter.RuleExposeProtoCasing.Format(spec))
	}
	if host != "" || hostPort != "" {
		l.here.Run(&linter.RuleExposeInvalidFormat, c.Location(), linter.RuleExposeInvalidFormat.Format(spec))
	}
}

// lintIgnored warns of sources that the ignore file of the build context leaves out.
func (l *lowering) lintIgnored(cmd command, c copyFlags) {
	if l.Ignored == nil || len(cmd.from) > 0 {
		return
	}
	verb := "Copy"
	if c.add {
		verb = "Add"
	}
	for _, p := range c.SourcePaths {
		if kindOf(p) != "" {
			continue
		}
		if p = path.Clean(p); l.Ignored(p) {
			l.here.Run(&linter.RuleCopyIgnoredFile, cmd.Location(), linter.RuleCopyIgnoredFile.Format(verb, p))
		}
	}
}
