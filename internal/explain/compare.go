package explain

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"build/cache"
	"build/internal/lazyregexp"
)

// Note begins the name of a field of a key's text that is not part of the key: it is there to explain with, and where it
// alone differs nothing has changed.
const Note = "note:"

// Names of notes.
const (
	NoteContent  = Note + "content"  // in the text of a definition key: the content key it stands for
	NoteBase     = Note + "base"     // name of the base image
	NoteDigest   = Note + "digest"   // and its digest
	NotePlatform = Note + "platform" // of the step, where that is not a field itself
	NoteArgs     = Note + "args"     // names of the build arguments a RUN sees, separated by spaces
)

// NoteChain is the note with the layers of the tree that mount i shows, one diffID a line.
func NoteChain(i int) string { return Note + "mount" + strconv.Itoa(i) + ":chain" }

// Facts is what Compare has to be told about the step beside the texts. All functions must be set.
type Facts struct {
	SameText bool   // the Dockerfile says the same as it did
	Was      string // what it said, as it is shown
	Text     string // as it is in the Dockerfile, with variables
	// Hide reports whether the value of a variable is not to be shown.
	Hide func(name string) bool
	// Files describes what differs in what a field stands for: "context", "from", "mount0:context" or "mount0:content".
	Files func(field, before, after string) Change
	// Below describes what differs in the layers that the step stands on, given as their lines in the field.
	Below func(before, after []string, base bool) Change
	// Remote names source i of an ADD; Mount names mount i of a RUN, Secret the secret that it mounts.
	Remote, Mount, Secret func(i int) string
}

// Compare says what differs between the texts of two keys of an instruction, the most telling first.
func Compare(before, after []byte, f Facts) []Change {
	c := comparison{Facts: f, old: cache.Fields(before), new: cache.Fields(after), said: map[string]bool{}}
	for _, d := range cache.Diff(before, after) {
		if !strings.HasPrefix(d.Name, Note) && d.Name != "kind" {
			c.field(d)
		}
	}
	if now, was := c.platform(c.new), c.platform(c.old); len(c.out) > 0 && now != was && was != "" && now != "" {
		c.say(Platform, "it is for "+now+", was for "+was)
	}
	Sort(c.out)
	return c.out
}

type comparison struct {
	Facts
	old, new map[string]string
	out      []Change
	said     map[string]bool
}

// say adds a change, each text once.
func (c *comparison) say(k Kind, text string) {
	if !c.said[text] {
		c.said[text] = true
		c.out = append(c.out, Change{Kind: k, Text: text})
	}
}

func (c *comparison) platform(fields map[string]string) string {
	if p := fields["platform"]; p != "" {
		return p
	}
	return fields[NotePlatform]
}

var numbered = lazyregexp.New(`^(arg|source|exclude|inline|remote|mount|ulimit|input|layer)([0-9]+)(:.*)?$`)

// field says what the change of one field means.
func (c *comparison) field(d cache.Change) {
	if what, name, ok := strings.Cut(d.Name, ":"); ok {
		switch what {
		case "env":
			c.variable(name, d)
			return
		case "file":
			c.say(Instruction, "here-document "+Line(name, 40)+" "+verb(d))
			return
		case "host":
			c.say(Setting, "--add-host "+name+" "+verb(d))
			return
		}
	}
	if m := numbered().FindStringSubmatch(d.Name); m != nil {
		i, _ := strconv.Atoi(m[2])
		c.numbered(m[1], i, m[3], d)
		return
	}
	c.plain(d)
}

func (c *comparison) plain(d cache.Change) {
	switch d.Name {
	case "platform": // Compare says it
	case "op", "add", "dest", "path":
		c.instruction()
	case "context", "from":
		c.out = append(c.out, c.Files(d.Name, d.Old, d.New))
	case "chown", "chmod", "link", "parents", "unpack":
		c.say(Flag, setting("--"+d.Name, d))
	case "owner":
		c.say(Flag, "the owner that --chown names is "+d.New+", was "+d.Old)
	case "dir":
		c.say(Setting, setting("working directory", d))
	case "user":
		c.say(Setting, setting("USER", d))
	case "network", "security":
		c.say(Setting, setting("--"+d.Name, d))
	case "hostname":
		c.say(Setting, setting("hostname", d))
	case "shm":
		c.say(Setting, setting("--shm-size", d))
	default:
		c.say(Unknown, d.Name+" "+verb(d))
	}
}

func (c *comparison) numbered(what string, i int, rest string, d cache.Change) {
	switch what {
	case "arg":
		if c.SameText { // a command is not expanded, so nothing else is left
			c.say(Instruction, "the SHELL that its command is for changed")
			return
		}
		c.instruction()
	case "source":
		c.instruction()
	case "inline":
		c.say(Instruction, "its here-document "+verb(d))
	case "exclude":
		c.say(Flag, "--exclude "+verb(d))
	case "remote":
		c.say(Remote, c.remote(i, d))
	case "ulimit":
		c.say(Setting, setting("--ulimit of resource "+strconv.Itoa(i), d))
	case "mount":
		c.mount(i, rest, d)
	case "input":
		c.input(d)
	default:
		c.say(Unknown, d.Name+" "+verb(d))
	}
}

var variableName = lazyregexp.New(`\$\{?([A-Za-z_][A-Za-z0-9_]*)`)

// instruction says that the Dockerfile says something else, or that a variable in what it says means something else.
func (c *comparison) instruction() {
	was := ""
	if c.Was != "" {
		was = ", was: " + Line(c.Was, 120)
	}
	if !c.SameText {
		c.say(Instruction, "its text changed"+was)
		return
	}
	var names []string
	for _, m := range variableName().FindAllStringSubmatch(c.Text, -1) {
		if !slices.Contains(names, "$"+m[1]) {
			names = append(names, "$"+m[1])
		}
		if c.Hide(m[1]) {
			was = ""
		}
	}
	text := "a variable in it changed"
	if len(names) > 0 {
		text = strings.Join(names, " or ") + " in it changed"
	}
	c.say(Argument, text+was)
}

// variable says that a variable of a RUN changed.
func (c *comparison) variable(name string, d cache.Change) {
	kind, what := Environment, "ENV "+name
	for _, fields := range []map[string]string{c.new, c.old} {
		if slices.Contains(strings.Fields(fields[NoteArgs]), name) {
			kind, what = Argument, "build argument "+name
		}
	}
	if c.Hide(name) {
		c.say(kind, what+" "+verb(d))
		return
	}
	c.say(kind, setting(what, d))
}

func (c *comparison) remote(i int, d cache.Change) string {
	name := c.Remote(i)
	old, now := strings.Fields(d.Old), strings.Fields(d.New)
	switch {
	case len(old) > 1 && len(now) > 1 && old[0] == "git" && now[0] == "git" && old[1] != now[1]:
		return fmt.Sprintf("%s is at %.12s, was at %.12s", name, now[1], old[1])
	case len(old) > 2 && len(now) > 2 && old[1] == now[1] && old[2] == now[2]:
		return name + " has another modification time"
	}
	return name + " changed"
}

func (c *comparison) mount(i int, rest string, d cache.Change) {
	name := c.Mount(i)
	switch rest {
	case "":
		c.say(Mount, "the mount "+name+" "+verb(d))
	case ":context", ":content":
		if d.Kind != cache.Changed { // the mount came or went, which is said
			return
		}
		ch := c.Files(d.Name, d.Old, d.New)
		ch.Kind = Mount
		ch.Text += ", mounted at " + name
		c.out = append(c.out, ch)
	case ":value":
		if d.Kind == cache.Changed {
			c.say(Mount, "the value of secret "+c.Secret(i)+" changed")
		} else {
			c.say(Mount, "whether the value of secret "+c.Secret(i)+" counts (cachekey=true) changed")
		}
	case ":access":
		c.say(Mount, "mode or owner of the mount "+name+" changed")
	default:
		c.say(Mount, "the mount "+name+" "+verb(d))
	}
}

// input says what differs in the layers that a step stands on.
func (c *comparison) input(d cache.Change) {
	if d.Name != "input0" {
		c.say(Unknown, "one of its inputs changed")
		return
	}
	old, now := lines(d.Old), lines(d.New)
	of, os := c.old[NoteBase], c.old[NoteDigest]
	nf, ns := c.new[NoteBase], c.new[NoteDigest]
	if base := sameBase(old, now); !base && (of != "" || nf != "") {
		switch {
		case of == nf && os != ns:
			c.say(Base, fmt.Sprintf("base image %s is %s, was %s", nf, short(ns), short(os)))
		case of != nf:
			c.say(Base, fmt.Sprintf("base image is %s, was %s", orNone(nf), orNone(of)))
		default:
			c.say(Base, "base image "+nf+" changed")
		}
		return
	}
	c.out = append(c.out, c.Below(old, now, !sameBase(old, now)))
}

func lines(s string) []string {
	return slices.DeleteFunc(strings.Split(s, "\n"), func(l string) bool { return l == "" })
}

// Made begins the line of a layer that was made here, which is known by content; the others came with an image.
const Made = "content:"

// sameBase reports whether two chains begin with the same layers of an image.
func sameBase(a, b []string) bool {
	base := func(l []string) []string {
		if i := slices.IndexFunc(l, func(s string) bool { return strings.HasPrefix(s, Made) }); i >= 0 {
			return l[:i]
		}
		return l
	}
	return slices.Equal(base(a), base(b))
}

func verb(d cache.Change) string {
	switch d.Kind {
	case cache.Added:
		return "is new"
	case cache.Removed:
		return "is gone"
	}
	return "changed"
}

// setting says what a setting is and was.
func setting(name string, d cache.Change) string {
	value := func(v string, set bool) string {
		if !set || v == "" && !strings.HasPrefix(name, "ENV ") && !strings.HasPrefix(name, "build argument ") {
			return "not set"
		}
		return quote(v)
	}
	return name + " is " + value(d.New, d.Kind != cache.Removed) + ", was " + value(d.Old, d.Kind != cache.Added)
}

func short(digest string) string {
	alg, hex, ok := strings.Cut(digest, ":")
	if !ok || len(hex) < 12 {
		return orNone(digest)
	}
	return alg + ":" + hex[:12]
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
