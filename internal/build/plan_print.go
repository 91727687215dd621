package build

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"build/internal/explain"
	"build/internal/lazyregexp"
	"build/parser"
)

// Print writes a plan as text, or as JSON.
func (p *Plan) Print(w io.Writer, format string) error {
	if format == FormatJSON {
		return printJSON(w, p)
	}
	var b bytes.Buffer
	rows := [][]string{}
	counts := map[Status]int{}
	for i := range p.Steps {
		s := &p.Steps[i]
		counts[s.Status]++
		rows = append(rows, []string{strconv.Itoa(s.Number), string(s.Status), explain.Line(s.Name, 70), s.why()})
	}
	var lines bytes.Buffer
	table(&lines, 2, rows)
	for line := range bytes.Lines(lines.Bytes()) {
		b.Write(append(bytes.TrimRight(line, " \n"), '\n'))
	}
	for _, f := range p.Fetch {
		fmt.Fprintf(&b, "fetch  %s  %d of %s, %s\n", f.Image, f.Layers, plural(f.Of, "layer"), units.HumanSize(float64(f.Bytes)))
	}
	fmt.Fprintf(&b, "Would run: %d", counts[WouldRun])
	if n := counts[WouldDepend]; n > 0 {
		fmt.Fprintf(&b, ", and up to %d more that depend on those", n)
	}
	fmt.Fprintf(&b, ". Cached: %d.\n", counts[WouldCached])
	return writeAll(w, b.Bytes())
}

func printJSON(w io.Writer, v any) error {
	text, err := indented(v)
	if err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return writeAll(w, text)
}

func writeAll(w io.Writer, text []byte) error {
	if _, err := w.Write(text); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// why says in a few words what stands behind a status.
func (s *PlanStep) why() string {
	switch {
	case s.Status == WouldCached:
		return ""
	case len(s.DependsOn) > 0:
		return "on " + numbersText(s.DependsOn)
	case s.Open != "":
		return "on " + s.Open
	case len(s.Changes) > 0:
		return s.Changes[0].Text
	}
	return "nothing like it ran before"
}

func numbersText(list []int) string {
	text := "step "
	if len(list) > 1 {
		text = "steps "
	}
	for i, n := range list {
		if i > 0 {
			text += ", "
		}
		text += strconv.Itoa(n)
	}
	return text
}

// Explain writes everything that is known about the chosen steps.
func (p *Plan) Explain(w io.Writer, format, choice string) error {
	chosen := *p
	var err error
	if chosen.Steps, err = chooseFrom(p.Steps, choice); err != nil {
		return err
	}
	if format == FormatJSON {
		return printJSON(w, &chosen)
	}
	var b bytes.Buffer
	for i := range chosen.Steps {
		s := &chosen.Steps[i]
		fmt.Fprintf(&b, "%d  %s\n", s.Number, parser.Printable(s.Name))
		switch {
		case s.Status == WouldCached && s.Made != nil:
			fmt.Fprintf(&b, "   would be cached: made %s ago\n", age(time.Since(*s.Made)))
		case s.Status == WouldCached:
			fmt.Fprintln(&b, "   would be cached")
		case s.Status == WouldDepend:
			fmt.Fprintf(&b, "   depends %s\n", s.why())
		case len(s.Changes) == 0:
			fmt.Fprintln(&b, "   would run: nothing like it ran before")
		default:
			fmt.Fprintln(&b, "   would run because")
			printChanges(&b, s.Changes)
		}
	}
	return writeAll(w, b.Bytes())
}

// printChanges lists changes with all their files.
func printChanges(b *bytes.Buffer, changes []explain.Change) {
	for _, c := range changes {
		fmt.Fprintf(b, "   - %s\n", parser.Printable(c.Text))
		if len(c.Files) < 2 {
			continue
		}
		for _, f := range c.Files {
			fmt.Fprintf(b, "       %s: %s\n", parser.Printable(f.Path), f.What)
		}
		if c.FilesLeftOut > 0 {
			fmt.Fprintf(b, "       and %d more\n", c.FilesLeftOut)
		}
	}
}

// StepID says which step is meant.
type StepID struct {
	Number   int    `json:"number"` // from 1
	Platform string `json:"platform"`
	Stage    string `json:"stage"`
	Name     string `json:"name"`
	Line     int    `json:"line,omitempty"`
}

func (s StepID) id() StepID { return s }

// chooseFrom returns the steps that a choice means, all if it is "". None is an error.
func chooseFrom[S interface{ id() StepID }](steps []S, choice string) ([]S, error) {
	chosen := []S{}
	for _, s := range steps {
		if choice == "" || s.id().chosenBy(choice) {
			chosen = append(chosen, s)
		}
	}
	if len(chosen) == 0 && choice != "" {
		return nil, &UsageError{
			Msg: fmt.Sprintf("no step is meant by %q", choice),
			Hint: fmt.Sprintf("name a step by its number (1 to %d), its stage and number (build/2), the line of its instruction (:12), "+
				"or a part of its text", len(steps)),
		}
	}
	return chosen, nil
}

// stageStep finds a step's number in its stage.
var stageStep = lazyregexp.New(`^\[(?:\S+ )*? *([0-9]+)/[0-9]+\] `)

// chosenBy reports whether a step is meant: "3" is the third, ":12" the one on line 12, "build/2" the one shown as [build 2/…],
// anything else a part of the text.
func (s StepID) chosenBy(choice string) bool {
	if n, err := strconv.Atoi(choice); err == nil {
		return n == s.Number
	}
	if at, ok := strings.CutPrefix(choice, ":"); ok {
		if n, err := strconv.Atoi(at); err == nil {
			return n == s.Line
		}
	}
	if of, n, ok := strings.Cut(choice, "/"); ok && strings.EqualFold(of, s.Stage) {
		if m := stageStep().FindStringSubmatch(s.Name); m != nil && m[1] == n {
			return true
		}
	}
	return strings.Contains(strings.ToLower(s.Name), strings.ToLower(choice))
}

// LastBuild is what the last build of a context did.
type LastBuild struct {
	Version int        `json:"version"` // PlanVersion
	Context string     `json:"context"`
	Steps   []LastStep `json:"steps"`
}

// LastStep is what became of one step.
type LastStep struct {
	StepID
	Status  string           `json:"status"` // "ran", "cached", "failed", "not reached"
	Changes []explain.Change `json:"changes,omitempty"`
}

// ExplainLast says what the last build of a context did, and why.
func ExplainLast(o StoreOptions, context string) (*LastBuild, error) {
	where := journalContext(&Options{Context: context})
	unknown := &UsageError{
		Msg:  fmt.Sprintf("no build of %s is remembered in %s", where, o.Root),
		Hint: "this looks back at a build; to ask about one that has not been made, give its flags and its context: build explain .",
	}
	if !storeExists(o.Root) {
		return nil, unknown
	}
	st, err := openStore(o)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	journal, raw := readJournal(st, where)
	if raw == nil {
		return nil, unknown
	}
	out := &LastBuild{Version: PlanVersion, Context: where, Steps: []LastStep{}}
	for i, l := range journal.Last {
		out.Steps = append(out.Steps, LastStep{StepID{i + 1, l.Platform, l.Stage, l.Title, l.Line}, l.Status, l.Changes})
	}
	return out, nil
}

// Print writes what became of the chosen steps.
func (l *LastBuild) Print(w io.Writer, format, choice string) error {
	chosen := *l
	var err error
	if chosen.Steps, err = chooseFrom(l.Steps, choice); err != nil {
		return err
	}
	if format == FormatJSON {
		return printJSON(w, &chosen)
	}
	var b bytes.Buffer
	for _, s := range chosen.Steps {
		fmt.Fprintf(&b, "%d  %s\n", s.Number, parser.Printable(s.Name))
		if len(s.Changes) == 0 {
			text := s.Status
			if s.Status == explain.Ran {
				text = "ran: nothing like it ran before"
			}
			fmt.Fprintf(&b, "   %s\n", text)
			continue
		}
		fmt.Fprintf(&b, "   %s because\n", s.Status)
		printChanges(&b, s.Changes)
	}
	return writeAll(w, b.Bytes())
}
