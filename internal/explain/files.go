package explain

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"build/internal/tree"
)

// MaxFiles is how many files of one change are named; the others are counted.
const MaxFiles = 100

// FileChange is a file that differs between two trees.
type FileChange struct {
	Path string `json:"path"`
	// What says how: "added", "removed", or what of it differs: "content", "mode 644 → 755", "owner 0:0 → 7:7"…
	What string `json:"what"`
	dir  bool
}

// Files are the files in which two trees differ.
type Files struct {
	List  []FileChange // in path order, at most MaxFiles
	Total int
	first *FileChange // the first that is no directory, even if List ended before it
}

// CompareFiles compares the entries of two trees, each in path order, leaving times out and what skip names. It reads each
// once and holds no more than it returns.
func CompareFiles(before, after iter.Seq2[tree.Entry, error], skip func(*tree.Entry) bool) (*Files, error) {
	f := &Files{}
	next, stop := iter.Pull2(before)
	defer stop()
	var old tree.Entry
	var err error
	more := true
	advance := func() error {
		old, err, more = next()
		return err
	}
	if err := advance(); err != nil {
		return nil, err
	}
	for e, err := range after {
		if err != nil {
			return nil, err
		}
		for more && tree.Compare(old.Path, e.Path) < 0 {
			f.add(&old, "removed", skip)
			if err := advance(); err != nil {
				return nil, err
			}
		}
		if !more || old.Path != e.Path {
			f.add(&e, "added", skip)
			continue
		}
		if what := differs(&old, &e); what != "" {
			f.add(&e, what, skip)
		}
		if err := advance(); err != nil {
			return nil, err
		}
	}
	for more {
		f.add(&old, "removed", skip)
		if err := advance(); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *Files) add(e *tree.Entry, what string, skip func(*tree.Entry) bool) {
	if skip != nil && skip(e) {
		return
	}
	f.Total++
	c := FileChange{Path: e.Path, What: what, dir: e.Type == tree.Dir}
	if len(f.List) < MaxFiles {
		f.List = append(f.List, c)
	}
	if f.first == nil && !c.dir {
		f.first = &c
	}
}

// differs says in what two entries of one path differ, "" if in nothing that counts.
func differs(a, b *tree.Entry) string {
	if a.Type != b.Type {
		return fmt.Sprintf("%s → %s", a.Type, b.Type)
	}
	if a.Type == tree.Whiteout || a.Implied || b.Implied {
		return ""
	}
	var what []string
	if a.Type == tree.File && (a.Digest != b.Digest || a.Size != b.Size) {
		what = append(what, "content")
	}
	if a.Type == tree.Symlink && a.Link != b.Link {
		what = append(what, "target")
	}
	if a.Mode&0o7777 != b.Mode&0o7777 && a.Type != tree.Symlink {
		what = append(what, fmt.Sprintf("mode %o → %o", a.Mode&0o7777, b.Mode&0o7777))
	}
	if a.UID != b.UID || a.GID != b.GID {
		what = append(what, fmt.Sprintf("owner %d:%d → %d:%d", a.UID, a.GID, b.UID, b.GID))
	}
	if a.Major != b.Major || a.Minor != b.Minor {
		what = append(what, "device number")
	}
	if !slices.Equal(a.Xattrs, b.Xattrs) {
		what = append(what, "extended attributes")
	}
	return strings.Join(what, ", ")
}

// Change puts the difference into words. place is what the paths are in, " of stage make" or ""; rename makes paths of the
// trees those that the Dockerfile means. Nil and no difference give a change that says only that something differs.
func (f *Files) Change(place string, rename func(path string) string) Change {
	if f == nil || f.Total == 0 {
		return Change{Kind: File, Text: "files" + place + " changed"}
	}
	show := f.List[0]
	if f.first != nil {
		show = *f.first
	}
	c := Change{Kind: File, Files: slices.Clone(f.List), FilesLeftOut: f.Total - len(f.List)}
	for i := range c.Files {
		c.Files[i].Path = rename(c.Files[i].Path)
	}
	verb := "changed (" + show.What + ")"
	if show.What == "added" || show.What == "removed" {
		verb = "was " + show.What
	}
	c.Text = Line(rename(show.Path), 200) + place + " " + verb
	// A directory that came or went with a file in it is not another thing to tell.
	if n := f.others(); n > 0 {
		c.Text += fmt.Sprintf(", and %d more", n)
	}
	return c
}

// others counts what there is besides the one that is named.
func (f *Files) others() int {
	n := f.Total - 1
	if f.first == nil || f.Total > len(f.List) {
		return n
	}
	for _, c := range f.List {
		if c.dir && c.What == f.first.What && tree.Below(f.first.Path, c.Path) {
			n--
		}
	}
	return n
}
