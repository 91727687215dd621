package build

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"build/parser"
)

// SARIF 2.1.0, as far as code scanning reads it: rules with their explanations, results with regions, and URIs relative to the
// root of the checkout.

type sarifLog struct {
	Schema  string     `json:"$schema"`
	Version string     `json:"version"`
	Runs    []sarifRun `json:"runs"`
}

type sarifRun struct {
	Tool        sarifTool         `json:"tool"`
	Invocations []sarifInvocation `json:"invocations"`
	Artifacts   []sarifArtifact   `json:"artifacts"`
	Results     []sarifResult     `json:"results"`
	ColumnKind  string            `json:"columnKind"`
}

type sarifInvocation struct {
	Successful    bool                `json:"executionSuccessful"`
	Notifications []sarifNotification `json:"toolExecutionNotifications,omitempty"`
}

type sarifNotification struct {
	Level   string    `json:"level"`
	Message sarifText `json:"message"`
}

type sarifTool struct {
	Driver sarifDriver `json:"driver"`
}

type sarifDriver struct {
	Name           string      `json:"name"`
	Version        string      `json:"version,omitempty"`
	InformationURI string      `json:"informationUri"`
	Rules          []sarifRule `json:"rules"`
}

type sarifText struct {
	Text string `json:"text"`
}

type sarifRule struct {
	ID            string          `json:"id"`
	Name          string          `json:"name"`
	Short         sarifText       `json:"shortDescription"`
	Full          sarifText       `json:"fullDescription"`
	Help          sarifText       `json:"help"`
	HelpURI       string          `json:"helpUri,omitempty"`
	Configuration sarifLevel      `json:"defaultConfiguration"`
	Properties    sarifProperties `json:"properties"`
}

type sarifLevel struct {
	Level   string `json:"level"`
	Enabled bool   `json:"enabled"`
}

type sarifProperties struct {
	Tags      []string `json:"tags"`
	Precision string   `json:"precision"`
	Severity  string   `json:"problem.severity"`
}

type sarifAt struct {
	URI    string `json:"uri"`
	BaseID string `json:"uriBaseId,omitempty"`
}

type sarifArtifact struct {
	Location sarifAt `json:"location"`
	Language string  `json:"sourceLanguage"`
}

type sarifResult struct {
	RuleID       string            `json:"ruleId"`
	RuleIndex    int               `json:"ruleIndex"`
	Level        string            `json:"level"`
	Message      sarifText         `json:"message"`
	Locations    []sarifLocation   `json:"locations"`
	Fingerprints map[string]string `json:"partialFingerprints"`
}

type sarifLocation struct {
	Physical sarifPhysical `json:"physicalLocation"`
}

type sarifPhysical struct {
	Artifact sarifAt     `json:"artifactLocation"`
	Region   sarifRegion `json:"region"`
}

type sarifRegion struct {
	StartLine   int        `json:"startLine"`
	StartColumn int        `json:"startColumn,omitempty"`
	EndLine     int        `json:"endLine,omitempty"`
	EndColumn   int        `json:"endColumn,omitempty"`
	Snippet     *sarifText `json:"snippet,omitempty"`
}

// buildErrorRule is the rule of what is no matter of lint: the file does not build.
const buildErrorRule = "BuildError"

const (
	sarifSchema = "https://json.schemastore.org/sarif-2.1.0.json"
	rulesURL    = "https://docs.docker.com/reference/build-checks/"
	rootBase    = "%SRCROOT%"
)

func (r *Report) sarif() ([]byte, error) {
	rules := lintRules()
	index := map[string]int{}
	for i := range rules {
		index[rules[i].ID] = i
	}
	at := r.sarifPlace()
	run := sarifRun{
		Tool:        sarifTool{sarifDriver{Name: "build", Version: r.in.Version, InformationURI: rulesURL, Rules: rules}},
		Invocations: []sarifInvocation{{Successful: true}},
		Artifacts:   []sarifArtifact{{Location: at, Language: "dockerfile"}},
		Results:     []sarifResult{},
		ColumnKind:  "unicodeCodePoints",
	}
	prints := fingerprints{}
	text := strings.Split(string(r.src), "\n")
	add := func(rule, level, msg string, pos parser.Range) {
		i, known := index[rule]
		if !known {
			return
		}
		run.Results = append(run.Results, sarifResult{
			RuleID: rule, RuleIndex: i, Level: level, Message: sarifText{msg},
			Locations:    []sarifLocation{{sarifPhysical{at, regionOf(pos, text)}}},
			Fingerprints: map[string]string{"primaryLocationLineHash": prints.of(rule, pos, text)},
		})
	}
	level := "warning"
	if r.strict {
		level = "error"
	}
	for _, w := range r.warnings {
		add(w.Rule, level, w.Msg, w.Range)
	}
	for _, err := range r.failures() {
		if ExitCode(err) == ExitUsage {
			add(buildErrorRule, "error", messageOf(err), placeOf(err))
			continue
		}
		// No network, no credentials: the check could not be carried out, which is not the Dockerfile's fault.
		run.Invocations[0].Successful = false
		run.Invocations[0].Notifications = append(run.Invocations[0].Notifications, sarifNotification{"error", sarifText{err.Error()}})
	}
	return indented(sarifLog{Schema: sarifSchema, Version: "2.1.0", Runs: []sarifRun{run}})
}

// failures are the errors that are not about the violations, which have results of their own.
func (r *Report) failures() []error {
	if r.failure == nil || strings.HasPrefix(messageOf(r.failure), lintFailed) {
		return nil
	}
	return apart(r.failure)
}

// regionOf gives a range as SARIF counts: characters instead of bytes. What has no place is about the first line.
func regionOf(r parser.Range, text []string) sarifRegion {
	if r.Start.Line < 1 || r.Start.Line > len(text) {
		return sarifRegion{StartLine: 1}
	}
	out := sarifRegion{
		StartLine: r.Start.Line, StartColumn: column(text, r.Start),
		EndLine: max(r.Start.Line, r.End.Line), EndColumn: column(text, r.End),
	}
	if out.EndColumn == 0 {
		out.EndLine = 0
	}
	snippet := strings.Join(text[r.Start.Line-1:min(max(r.Start.Line, r.End.Line), len(text))], "\n")
	out.Snippet = &sarifText{strings.ToValidUTF8(snippet, "\uFFFD")}
	return out
}

// column counts the characters before a place, and the one it is at.
func column(text []string, p parser.Position) int {
	if p.Line < 1 || p.Line > len(text) || p.Col < 1 {
		return 0
	}
	line := text[p.Line-1]
	return utf8.RuneCountInString(line[:min(p.Col-1, len(line))]) + 1
}

// fingerprints tells findings apart that stay the same when lines are added above them.
type fingerprints map[string]int

func (f fingerprints) of(rule string, r parser.Range, text []string) string {
	line := ""
	if r.Start.Line >= 1 && r.Start.Line <= len(text) {
		line = strings.TrimSpace(text[r.Start.Line-1])
	}
	sum := sha256.Sum256([]byte(rule + "\x00" + line))
	hash := hex.EncodeToString(sum[:8])
	f[hash]++
	return fmt.Sprintf("%s:%d", hash, f[hash])
}

// sarifPlace names the Dockerfile relative to the root of its checkout, or to the current directory where there is none. Where that
// root is on this machine is left out: who uploads the report may have it elsewhere.
func (r *Report) sarifPlace() sarifAt {
	if r.path == "" {
		name := filepath.Base(r.name)
		if name == "-" || name == "." || name == "" {
			name = "Dockerfile"
		}
		return sarifAt{URI: escapedPath(name)}
	}
	root := checkoutOf(filepath.Dir(r.path))
	rel, err := filepath.Rel(root, r.path)
	if root == "" || err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return sarifAt{URI: "file://" + escapedPath(r.path)}
	}
	return sarifAt{URI: escapedPath(rel), BaseID: rootBase}
}

func escapedPath(path string) string {
	escaped := (&url.URL{Path: path}).EscapedPath()
	return strings.ReplaceAll(escaped, ":", "%3A") // a first component with a colon would be a scheme
}

// checkoutOf finds the directory with .git that dir is in, else the current directory.
func checkoutOf(dir string) string {
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Lstat(filepath.Join(at, ".git")); err == nil {
			return at
		}
		if at == filepath.Dir(at) {
			break
		}
	}
	if wd, err := os.Getwd(); err == nil {
		return wd
	}
	return ""
}

// lintRules describes all rules there are.
func lintRules() []sarifRule {
	rules := []sarifRule{
		ruleOf(&linter.RuleStageNameCasing), ruleOf(&linter.RuleFromAsCasing), ruleOf(&linter.RuleNoEmptyContinuation),
		ruleOf(&linter.RuleConsistentInstructionCasing), ruleOf(&linter.RuleDuplicateStageName), ruleOf(&linter.RuleReservedStageName),
		ruleOf(&linter.RuleJSONArgsRecommended), ruleOf(&linter.RuleMaintainerDeprecated), ruleOf(&linter.RuleUndefinedArgInFrom),
		ruleOf(&linter.RuleWorkdirRelativePath), ruleOf(&linter.RuleUndefinedVar), ruleOf(&linter.RuleMultipleInstructionsDisallowed),
		ruleOf(&linter.RuleLegacyKeyValueFormat), ruleOf(&linter.RuleInvalidBaseImagePlatform), ruleOf(&linter.RuleRedundantTargetPlatform),
		ruleOf(&linter.RuleSecretsUsedInArgOrEnv), ruleOf(&linter.RuleInvalidDefaultArgInFrom), ruleOf(&linter.RuleFromPlatformFlagConstDisallowed),
		ruleOf(&linter.RuleCopyIgnoredFile), ruleOf(&linter.RuleInvalidDefinitionDescription), ruleOf(&linter.RuleExposeProtoCasing),
		ruleOf(&linter.RuleExposeInvalidFormat),
	}
	for i := range rules {
		if rules[i].ID == linter.RuleSecretsUsedInArgOrEnv.Name {
			rules[i].Properties.Tags = append(rules[i].Properties.Tags, "security")
		}
	}
	return append(rules, sarifRule{
		ID: buildErrorRule, Name: buildErrorRule,
		Short:         sarifText{"The Dockerfile cannot be built"},
		Full:          sarifText{"The Dockerfile has a mistake that ends a build before its first step."},
		Help:          sarifText{"Run the build, which shows the line and what is wrong with it."},
		HelpURI:       "https://docs.docker.com/reference/dockerfile/",
		Configuration: sarifLevel{Level: "error", Enabled: true},
		Properties:    sarifProperties{Tags: []string{"dockerfile"}, Precision: "very-high", Severity: "error"},
	})
}

func ruleOf[F any](r *linter.LinterRule[F]) sarifRule {
	help := r.Description + "."
	if r.URL != "" {
		help += " See " + r.URL
	}
	return sarifRule{
		ID: r.Name, Name: r.Name, Short: sarifText{r.Description}, Full: sarifText{r.Description}, Help: sarifText{help}, HelpURI: r.URL,
		Configuration: sarifLevel{Level: "warning", Enabled: !r.Experimental},
		Properties:    sarifProperties{Tags: []string{"dockerfile"}, Precision: "high", Severity: "warning"},
	}
}
