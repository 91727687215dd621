package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"build/executor"
	"build/internal/cgroup"
	"build/internal/userns"
)

// Diagnosis is what a machine lets RUN steps be isolated with, found by trying.
type Diagnosis struct {
	Machine string `json:"machine"` // kernel, architecture, user
	Store   string `json:"store"`
	// Rung is what a build takes: 0 to 2, or 3 when no RUN can run.
	Rung   int    `json:"rung"`
	Ground string `json:"ground"` // in words
	Ways   []Way  `json:"ways"`   // best first
	// Primitives were tried in the way taken.
	Primitives []Finding     `json:"primitives"`
	Limits     []Finding     `json:"limits"`           // one for each controller of control groups
	Emulators  []Finding     `json:"emulators"`        // one for each other machine that is known
	Advice     []Advice      `json:"advice,omitempty"` // what would give a better rung
	Took       time.Duration `json:"took"`             // for the ways and the primitives, nanoseconds
}

// Way is one way to isolate steps.
type Way struct {
	Name  string `json:"name"`
	Taken bool   `json:"taken"`
	Error string `json:"error,omitempty"` // why it is closed; empty also for what is below the one taken
}

// Finding is one primitive, tried.
type Finding struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Detail  string `json:"detail,omitempty"`
	Blocker string `json:"blocker,omitempty"`
	Fix     string `json:"fix,omitempty"`
}

// Doctor finds out what is possible here.
func Doctor(ctx context.Context, o StoreOptions, want Isolation, emulators Emulators) (*Diagnosis, error) {
	d := &Diagnosis{Machine: machineLine(), Rung: 3, Emulators: foundEmulators(emulators)}
	st, err := openStore(o)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	d.Store = st.Dir() + " on " + fileSystem(st.Dir())
	began := time.Now()
	hd, plan, tried, err := userns.Open(ctx, want.accepts)
	var ladder *userns.LadderError
	if err != nil && !errors.As(err, &ladder) {
		return nil, err
	}
	d.ways(tried)
	if hd != nil {
		defer hd.Close()
		var found examination
		if err := hd.Call(ctx, "examine", openRequest{Root: st.Dir(), Plan: plan, RootKind: want.Root}, &found); err != nil {
			return nil, fmt.Errorf("examine what is possible inside: %w", fromHolder(err))
		}
		g := &ground{Plan: plan, Root: found.RootKind}
		d.Rung, d.Ground, d.Primitives = g.rung(), g.String(), found.Findings
	} else {
		d.Ground = "rung 3: RUN steps cannot run; everything else builds"
	}
	d.Took = time.Since(began)
	d.Limits = limitFindings()
	return d, nil
}

// ways lists what was tried, and advises how to open one that is closed: the best, or, where all are, the one that asks for least.
func (d *Diagnosis) ways(tried []userns.Tried) {
	open := false
	for _, t := range tried {
		open = open || t.Err == nil
		w := Way{Name: t.Plan.String(), Taken: t.Err == nil}
		if t.Err != nil {
			w.Error = t.Err.Error()
		}
		d.Ways = append(d.Ways, w)
	}
	for _, t := range tried {
		var e *userns.Error
		if errors.As(t.Err, &e) && (d.Advice == nil || !open && t.Plan.IDs == userns.IDsSingle) {
			d.Advice = adviceFor(e.Obstacle)
		}
	}
}

// examination is what the holder says of the place it is in.
type examination struct {
	RootKind RootKind
	Findings []Finding
}

// examine tries every primitive a step uses, in the process that would start it.
func (n *inside) examine(ctx context.Context, in json.RawMessage, files []*os.File) (any, error) {
	resp, err := n.open(ctx, in, files)
	if err != nil {
		return nil, err
	}
	defer n.close(ctx, nil, nil)
	var req openRequest
	if err := json.Unmarshal(in, &req); err != nil {
		return nil, err
	}
	out := examination{RootKind: resp.(*openResponse).RootKind}
	g := ground{Plan: req.Plan}
	for _, c := range executor.Probe(ctx, n.store.Local(n.kind), g.means()).Checks {
		out.Findings = append(out.Findings, Finding{c.Name, c.OK, c.Detail, c.Blocker, c.Fix})
	}
	if !g.Plan.Plain {
		c := executor.ProbeEmulation(ctx)
		out.Findings = append(out.Findings, Finding{c.Name, c.OK, c.Detail, c.Blocker, c.Fix})
	}
	return &out, nil
}

// limitFindings says which resources of a step can be limited.
func limitFindings() []Finding {
	var out []Finding
	for _, f := range cgroup.Probe() {
		where := "cgroup v1"
		if f.V2 {
			where = "cgroup v2"
		}
		l := Finding{Name: "limit of " + string(f.Controller), OK: f.OK, Detail: where, Blocker: f.Blocker, Fix: f.Fix}
		if !f.OK {
			l.Detail = "refused"
			if f.Fallback != "" {
				l.Detail = "instead: " + f.Fallback
			}
		}
		out = append(out, l)
	}
	return out
}

func machineLine() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // cannot fail
	who := "uid " + strconv.Itoa(os.Geteuid())
	if usr, err := user.Current(); err == nil && usr.Username != "" {
		who += " (" + usr.Username + ")"
	}
	return fmt.Sprintf("Linux %s, %s, %s", unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]), who)
}

// fileSystem names the type of file system a path is on, as far as it matters here.
func fileSystem(path string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return "?"
	}
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
		unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs", unix.FUSE_SUPER_MAGIC: "fuse", 0x2fc12fc1: "zfs",
	}
	if n, ok := names[int64(fs.Type)]; ok {
		return n
	}
	return fmt.Sprintf("file system %#x", fs.Type)
}

// Print writes the diagnosis for people.
func (d *Diagnosis) Print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nstore: %s\n%s\n\n", d.Machine, d.Store, d.Ground)
	for _, way := range d.Ways {
		if way.Taken {
			fmt.Fprintf(&b, "taken    %s\n", way.Name)
		} else {
			fmt.Fprintf(&b, "closed   %s\n         %s\n", way.Name, way.Error)
		}
	}
	for _, findings := range [][]Finding{d.Primitives, d.Limits} {
		if len(findings) == 0 {
			continue
		}
		b.WriteString("\n")
		tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
		for _, f := range findings {
			fmt.Fprintln(tw, f.line())
		}
		tw.Flush()
	}
	printEmulators(&b, d.Emulators)
	printAdvice(&b, d.Advice)
	_, err := io.WriteString(w, b.String())
	return err
}

func (f Finding) line() string {
	if f.OK {
		return strings.TrimRight("ok\t"+f.Name+"\t"+f.Detail, "\t")
	}
	s := "blocked\t" + f.Name + "\t" + f.Detail
	if f.Blocker != "" {
		s += ": " + f.Blocker
	}
	if f.Fix != "" {
		s += " (fix: " + f.Fix + ")"
	}
	return s
}

// printAdvice says what would open the best way that is closed.
func printAdvice(b *strings.Builder, advice []Advice) {
	if len(advice) == 0 {
		return
	}
	b.WriteString("\nwhat would help:\n")
	for _, a := range advice {
		fmt.Fprintf(b, "  %-11s %s\n", a.Where+":", a.Fix)
	}
}
