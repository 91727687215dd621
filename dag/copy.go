package dag

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/opencontainers/go-digest"

	"build/internal/lazyregexp"
	"build/parser"
)

// copyFlags is what COPY and ADD have in common and where they differ.
type copyFlags struct {
	instructions.SourcesAndDest
	add          bool
	text         string // as in the source
	from         string
	chown, chmod string
	link         bool
	parents      bool
	exclude      []string
	checksum     string
	keepGitDir   *bool
	unpack       *bool
}

func copyFlagsOf(c *instructions.CopyCommand) copyFlags {
	return copyFlags{
		SourcesAndDest: c.SourcesAndDest, text: c.String(), from: c.From,
		chown: c.Chown, chmod: c.Chmod, link: c.Link, parents: c.Parents, exclude: c.ExcludePatterns,
	}
}

func addFlagsOf(c *instructions.AddCommand) copyFlags {
	return copyFlags{
		SourcesAndDest: c.SourcesAndDest, text: c.String(), add: true,
		chown: c.Chown, chmod: c.Chmod, link: c.Link, exclude: c.ExcludePatterns,
		checksum: c.Checksum, keepGitDir: c.KeepGitDir, unpack: c.Unpack,
	}
}

// copy adds the step of a COPY or ADD.
func (l *lowering) copy(d *stage, cmd command, c copyFlags) error {
	st := &d.state
	tree, err := l.copyTree(d, cmd, c)
	if err != nil {
		return err
	}
	if err := checkChmod(c.chmod); err != nil {
		return err
	}
	if err := checkSources(c); err != nil {
		return err
	}
	l.lintIgnored(cmd, c)
	dest := c.DestPath
	if dest == "" || dest == "." {
		dest = "./"
	}
	op := Copy{
		Add: c.add, Dest: cleanDest(absolute(st.workdir, dest, true)), Chown: c.chown, Chmod: c.chmod,
		Link: c.link && c.chmod == "", Parents: c.parents, Exclude: c.exclude, Unpack: c.unpack,
		KeepGitDir: c.keepGitDir, Checksum: c.checksum,
	}
	pos := l.file.Position(cmd.Location())
	if c.link && c.chmod != "" {
		l.warnings = append(l.warnings, parser.Warning{Msg: "--link has no effect together with --chmod", Range: pos})
	}
	local := false
	for _, p := range c.SourcePaths {
		src := CopySource{Path: p, Place: kindOf(p)}
		local = local || src.Place == ""
		op.Sources = append(op.Sources, src)
	}
	for _, f := range c.SourceContents {
		if err := checkInlineName(f.Path); err != nil {
			return err
		}
		op.Sources = append(op.Sources, CopySource{Path: f.Path, Inline: true, Data: []byte(f.Data)})
	}
	inputs := []ID{st.out}
	if local {
		inputs = append(inputs, tree())
	}
	st.out = l.add(d, Step{
		Op:       op,
		Inputs:   inputs,
		Name:     l.stepName(d, hidePasswords(l.title(c.text, l.lex, st.env), c.SourcePaths), st.platform, st.env, cmd.onbuild),
		Pos:      pos,
		NoCache:  d.noCache,
		Platform: st.platform,
	})
	l.record(st, copiedBy(c)+ranSuffix, st.out)
	return nil
}

// cleanDest cleans a destination but keeps a final / or /., which say that it is a directory.
func cleanDest(dest string) string {
	clean := path.Clean(dest)
	switch {
	case clean == "/":
	case strings.HasSuffix(dest, "/"):
		clean += "/"
	case strings.HasSuffix(dest, "/."):
		clean += "/."
	}
	return clean
}

// copyTree finds the tree the sources are in; making its step waits until it is known to be used.
func (l *lowering) copyTree(d *stage, cmd command, c copyFlags) (func() ID, error) {
	if len(cmd.from) == 0 {
		return func() ID { return l.contextStep("", l.file.Position(cmd.Location()), l.settings.target) }, nil
	}
	from := cmd.from[0]
	if !from.done {
		return nil, fmt.Errorf("cannot copy from stage %q, it needs to be defined before current stage %q", c.from, d.label)
	}
	return func() ID { return from.state.out }, nil
}

// copiedBy is the history of a COPY or ADD. Flags that only say where the files come from are not in it.
func copiedBy(c copyFlags) string {
	words := []string{"COPY"}
	if c.add {
		words[0] = "ADD"
	}
	if c.parents {
		words = append(words, "--parents")
	}
	if c.chown != "" {
		words = append(words, "--chown="+c.chown)
	}
	if c.chmod != "" {
		words = append(words, "--chmod="+c.chmod)
	}
	for _, p := range c.SourcePaths {
		words = append(words, hidePasswords(p, []string{p}))
	}
	for _, f := range c.SourceContents {
		words = append(words, "<<"+f.Path)
	}
	return strings.Join(append(words, c.DestPath), " ")
}

// checkSources refuses sources that cannot be: for COPY what has to be fetched, for ADD what contradicts itself.
func checkSources(c copyFlags) error {
	if c.checksum != "" {
		if len(c.SourcePaths) != 1 {
			return parser.About("--checksum", errors.New("checksum can't be specified for multiple sources"))
		}
		if kindOf(c.SourcePaths[0]) == "" {
			return parser.About("--checksum", errors.New("checksum requires HTTP(S) or Git sources"))
		}
	}
	for _, p := range c.SourcePaths {
		var err error
		switch kind := kindOf(p); {
		case kind == Git && !c.add:
			err = errors.New("source can't be a git ref for COPY")
		case kind == HTTP && !c.add:
			err = errors.New("source can't be a URL for COPY")
		case kind == Git:
			err = checkGit(p, c)
		case kind == HTTP && c.checksum != "":
			if _, derr := digest.Parse(c.checksum); derr != nil {
				return parser.About("--checksum", fmt.Errorf("checksum %q: %w", c.checksum, derr))
			}
		}
		if err != nil {
			return parser.About(p, err)
		}
	}
	return nil
}

// checkGit checks the options in the URL of a repository, against each other and against the flags.
func checkGit(src string, c copyFlags) error {
	ref, _, err := dfgitutil.ParseGitRef(src)
	switch {
	case err != nil:
		return err
	case c.keepGitDir != nil && ref.KeepGitDir != nil && *c.keepGitDir != *ref.KeepGitDir:
		return errors.New("inconsistent keep-git-dir configuration")
	case c.checksum != "" && ref.Checksum != "" && c.checksum != ref.Checksum:
		return fmt.Errorf("checksum mismatch %q != %q", c.checksum, ref.Checksum)
	}
	return nil
}

// kindOf tells files, URLs and git repositories apart. An http(s) URL is a repository if its path ends in .git.
func kindOf(src string) Place {
	if !strings.Contains(src, ":") && !strings.HasPrefix(src, "github.com/") {
		return "" // nearly all: not worth the expressions that recognise a repository
	}
	ref, isGit, err := dfgitutil.ParseGitRef(src)
	switch {
	case err == nil && !ref.IndistinguishableFromLocal, err != nil && isGit:
		return Git
	case strings.HasPrefix(src, "http://"), strings.HasPrefix(src, "https://"):
		return HTTP
	}
	return ""
}

// hidePasswords takes the credentials in URLs out of a text that ends up in images and on screens.
func hidePasswords(text string, urls []string) string {
	for _, raw := range urls {
		if kindOf(raw) == "" {
			continue
		}
		u, err := url.Parse(raw)
		if err != nil || u.User == nil {
			continue
		}
		if _, ok := u.User.Password(); !ok && u.Scheme != "http" && u.Scheme != "https" {
			continue // the user of ssh is no secret
		}
		text = strings.ReplaceAll(text, "//"+u.User.String()+"@", "//xxxxx:xxxxx@")
	}
	return text
}

var symbolicMode = lazyregexp.New(`^[ugoa]*([-+=]([rwxXst]*|[ugo]))+(,[ugoa]*([-+=]([rwxXst]*|[ugo]))+)*$`)

// checkChmod accepts an octal mode or a symbolic one as chmod(1) does.
func checkChmod(mode string) error {
	if mode == "" || symbolicMode().MatchString(mode) {
		return nil
	}
	n, err := strconv.ParseUint(mode, 8, 32)
	if err == nil && n <= 0o7777 {
		return nil
	}
	if err == nil || mode[0] >= '0' && mode[0] <= '9' {
		return fmt.Errorf("invalid chmod parameter: '%v'. it should be octal string and between 0 and 07777", mode)
	}
	return fmt.Errorf("invalid chmod parameter: '%v': neither an octal nor a symbolic mode", mode)
}
