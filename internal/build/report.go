package build

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"build/dag"
	"build/parser"
)

// The shapes below are those of `docker buildx build --call=…,format=json`: scripts read them.

type jsonPosition struct {
	Line      int `json:"line,omitempty"`
	Character int `json:"character,omitempty"`
}

type jsonRange struct {
	Start jsonPosition `json:"start"`
	End   jsonPosition `json:"end"`
}

type jsonLocation struct {
	Ranges []jsonRange `json:"ranges,omitempty"`
}

// lines gives a range as BuildKit does: one entry for each line.
func lines(r parser.Range) jsonLocation {
	var out jsonLocation
	if r.Start.Line == 0 {
		return out
	}
	for n := r.Start.Line; n <= max(r.Start.Line, r.End.Line); n++ {
		out.Ranges = append(out.Ranges, jsonRange{jsonPosition{Line: n}, jsonPosition{Line: n}})
	}
	return out
}

type jsonViolation struct {
	RuleName    string       `json:"ruleName"`
	Description string       `json:"description,omitempty"`
	URL         string       `json:"url,omitempty"`
	Detail      string       `json:"detail,omitempty"`
	Location    jsonLocation `json:"location"`
}

type jsonBuildError struct {
	Message  string       `json:"message"`
	Location jsonLocation `json:"location"`
}

type jsonSource struct {
	Filename string `json:"filename"`
	Data     []byte `json:"data"`
	Language string `json:"language"`
}

type jsonCheck struct {
	Warnings []jsonViolation `json:"warnings"`
	Sources  []jsonSource    `json:"sources"`
	Error    *jsonBuildError `json:"buildError,omitempty"`
}

type jsonArg struct {
	Name        string        `json:"name"`
	Description string        `json:"description,omitempty"`
	Value       string        `json:"value,omitempty"`
	Location    *jsonLocation `json:"location,omitempty"`
}

type jsonMount struct {
	Name     string        `json:"name"`
	Required bool          `json:"required,omitempty"`
	Location *jsonLocation `json:"location,omitempty"`
}

type jsonCache struct {
	ID       string        `json:"ID"`
	Location *jsonLocation `json:"location,omitempty"`
}

type jsonOutline struct {
	Name        string      `json:"name,omitempty"`
	Description string      `json:"description,omitempty"`
	Args        []jsonArg   `json:"args,omitempty"`
	Secrets     []jsonMount `json:"secrets,omitempty"`
	SSH         []jsonMount `json:"ssh,omitempty"`
	Cache       []jsonCache `json:"cache,omitempty"`
	Sources     [][]byte    `json:"sources,omitempty"`
}

type jsonTarget struct {
	Name        string        `json:"name,omitempty"`
	Default     bool          `json:"default,omitempty"`
	Description string        `json:"description,omitempty"`
	Base        string        `json:"base,omitempty"`
	Platform    string        `json:"platform,omitempty"`
	Location    *jsonLocation `json:"location,omitempty"`
}

type jsonTargets struct {
	Targets []jsonTarget `json:"targets"`
	Sources [][]byte     `json:"sources"`
}

type jsonNamed struct {
	Name        string `json:"name"`
	Description string `json:"description"`
}

type jsonRequest struct {
	Name        string      `json:"name"`
	Version     string      `json:"version"`
	Type        string      `json:"type"`
	Description string      `json:"description"`
	Opts        []jsonNamed `json:"opts"`
	Inputs      []jsonNamed `json:"inputs"`
	Metadata    []jsonNamed `json:"metadata"`
	Refs        []jsonNamed `json:"refs"`
}

// requests lists what can be asked. The names are BuildKit's; "check" is what everybody calls lint.
func requests() []jsonRequest {
	answers := []jsonNamed{{Name: "result.json"}, {Name: "result.txt"}}
	target := []jsonNamed{{Name: "target", Description: "Stage to look at, the last if none is named"}}
	request := func(name, description string, opts []jsonNamed, meta ...jsonNamed) jsonRequest {
		return jsonRequest{
			Name: "frontend." + name, Version: "1.0.0", Type: "rpc", Description: description,
			Opts: opts, Metadata: append(answers[:len(answers):len(answers)], meta...),
		}
	}
	return []jsonRequest{
		request("outline", "Build arguments, secrets, SSH sockets and caches the target uses", target),
		request("targets", "Stages that can be built", []jsonNamed{}),
		request("lint", "Violations of lint rules and errors (--call=check)", target, jsonNamed{Name: "result.statuscode"}),
		request(CallDescribe, "This list", []jsonNamed{}),
	}
}

func (r *Report) json() ([]byte, error) {
	var v any
	switch r.in.Call {
	case CallCheck:
		v = r.jsonCheck()
	case CallOutline:
		v = r.jsonOutline()
	case CallTargets:
		v = jsonTargets{Targets: listTargets(r.targets), Sources: [][]byte{r.src}}
	case CallDescribe:
		v = requests()
	}
	return indented(v)
}

// indented is JSON for people too: arrows and ampersands of Dockerfiles stay as they are.
func indented(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return b.Bytes(), err
}

func (r *Report) jsonCheck() jsonCheck {
	out := jsonCheck{
		Warnings: []jsonViolation{},
		Sources:  []jsonSource{{Filename: r.name, Data: r.src, Language: "Dockerfile"}},
	}
	for _, w := range r.warnings {
		out.Warnings = append(out.Warnings, jsonViolation{
			RuleName: w.Rule, Description: w.Description, URL: w.URL, Detail: w.Msg, Location: lines(w.Range),
		})
	}
	if r.failure != nil {
		out.Error = &jsonBuildError{Message: messageOf(r.failure), Location: lines(placeOf(r.failure))}
	}
	return out
}

func (r *Report) jsonOutline() jsonOutline {
	o := r.outline
	at := func(p parser.Range) *jsonLocation { l := lines(p); return &l }
	mounts := func(in []dag.OutlineMount) (out []jsonMount) {
		for _, m := range in {
			out = append(out, jsonMount{Name: m.ID, Required: m.Required, Location: at(m.Pos)})
		}
		return out
	}
	out := jsonOutline{
		Name: o.Name, Description: o.Description, Sources: [][]byte{r.src},
		Secrets: mounts(o.Secrets), SSH: mounts(o.SSH),
	}
	for _, a := range o.Args {
		out.Args = append(out.Args, jsonArg{Name: a.Name, Description: a.Description, Value: a.Value, Location: at(a.Pos)})
	}
	for _, c := range o.Caches {
		out.Cache = append(out.Cache, jsonCache{ID: c.ID, Location: at(c.Pos)})
	}
	return out
}

func listTargets(f *parser.File) []jsonTarget {
	var out []jsonTarget
	for i, st := range f.Stages {
		at := lines(f.Position(st.Location))
		out = append(out, jsonTarget{
			Name: st.Name, Default: i == len(f.Stages)-1, Description: st.DocComment,
			Base: st.BaseName, Platform: st.Platform, Location: &at,
		})
	}
	return out
}

func (r *Report) text() ([]byte, error) {
	var b bytes.Buffer
	switch r.in.Call {
	case CallCheck:
		r.textCheck(&b)
	case CallOutline:
		r.textOutline(&b)
	case CallTargets:
		rows := [][]string{{"TARGET", "DESCRIPTION"}}
		for _, t := range listTargets(r.targets) {
			name := t.Name
			switch {
			case t.Default && name == "":
				name = "(default)"
			case t.Default:
				name += " (default)"
			}
			rows = append(rows, []string{name, t.Description})
		}
		table(&b, 1, rows)
	case CallDescribe:
		rows := [][]string{{"NAME", "VERSION", "DESCRIPTION"}}
		for _, q := range requests() {
			rows = append(rows, []string{q.Name[len("frontend."):], q.Version, q.Description})
		}
		table(&b, 1, rows)
	}
	return b.Bytes(), nil
}

func (r *Report) textCheck(w *bytes.Buffer) {
	if len(r.warnings) == 0 {
		if r.failure == nil {
			fmt.Fprintln(w, "Check complete, no warnings found.")
		}
		return
	}
	have := "have"
	if len(r.warnings) == 1 {
		have = "has"
	}
	fmt.Fprintf(w, "Check complete, %s %s been found!\n", plural(len(r.warnings), "warning"), have)
	for _, x := range r.warnings {
		fmt.Fprintf(w, "\nWARNING: %s", x.Rule)
		if x.URL != "" {
			fmt.Fprintf(w, " - %s", x.URL)
		}
		fmt.Fprintf(w, "\n%s\n%s", parser.Printable(x.Msg), parser.Excerpt(x.Range, r.src))
	}
	if r.failure != nil {
		fmt.Fprintln(w) // the error follows
	}
}

func (r *Report) textOutline(w *bytes.Buffer) {
	o := r.outline
	if o.Name != "" || o.Description != "" {
		rows := [][]string{{"TARGET:", o.Name}}
		if o.Name == "" {
			rows[0][1] = "(default)"
		}
		if o.Description != "" {
			rows = append(rows, []string{"DESCRIPTION:", o.Description})
		}
		table(w, 1, rows)
		fmt.Fprintln(w)
	}
	section := func(rows [][]string) {
		if len(rows) > 1 {
			table(w, 3, rows)
			fmt.Fprintln(w)
		}
	}
	args := [][]string{{"BUILD ARG", "VALUE", "DESCRIPTION"}}
	for _, a := range o.Args {
		args = append(args, []string{a.Name, a.Value, a.Description})
	}
	section(args)
	mounts := func(title string, list []dag.OutlineMount) {
		rows := [][]string{{title, "REQUIRED"}}
		for _, m := range list {
			required := ""
			if m.Required {
				required = "true"
			}
			rows = append(rows, []string{m.ID, required})
		}
		section(rows)
	}
	mounts("SECRET", o.Secrets)
	mounts("SSH", o.SSH)
	caches := [][]string{{"CACHE"}}
	for _, c := range o.Caches {
		caches = append(caches, []string{c.ID})
	}
	section(caches)
}

// table writes rows in columns. Words of a Dockerfile do nothing to the terminal.
func table(w io.Writer, padding int, rows [][]string) {
	tw := tabwriter.NewWriter(w, 0, 0, padding, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, parser.Printable(strings.ReplaceAll(cell, "\t", " ")))
		}
		fmt.Fprintln(tw)
	}
	_ = tw.Flush() // into memory
}
