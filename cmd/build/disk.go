package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"build/internal/build"
)

// This file holds what looks after the store's size: --store-limit, du and prune.

// storeLimit reads --store-limit, or the environment where there is none: a size, a share of the disk, or off.
func (a *app) storeLimit(flag string) (build.StoreLimit, error) {
	text, from := flag, "--store-limit"
	if text == "" {
		text, from = a.getenv("BUILD_STORE_LIMIT"), "BUILD_STORE_LIMIT"
	}
	switch text {
	case "":
		return build.DefaultStoreLimit, nil
	case "off", "none", "0":
		return build.StoreLimit{}, nil
	}
	if share, ok := strings.CutSuffix(text, "%"); ok {
		n, err := strconv.ParseFloat(share, 64)
		if err != nil || n <= 0 || n > 100 {
			return build.StoreLimit{}, usagef("invalid %s=%s: a share of the disk is between 0 and 100%%", from, text)
		}
		return build.StoreLimit{Percent: n}, nil
	}
	n, err := units.RAMInBytes(text)
	if err != nil || n <= 0 {
		return build.StoreLimit{}, usagef("invalid %s=%s: the form is a size such as 20GB, a share of the disk such as 15%%, or off", from, text)
	}
	return build.StoreLimit{Bytes: n}, nil
}

// builderFlag takes docker's --builder, which has no meaning here.
func builderFlag(fs *pflag.FlagSet, seen *[]seenFlag) {
	for i := range otherFlags {
		if f := &otherFlags[i]; f.name == "builder" {
			fs.Var(&otherValue{flag: f, seen: seen}, f.name, "")
			fs.Lookup(f.name).Hidden = true
		}
	}
}

func (a *app) duCommand(g *globalFlags) *cobra.Command {
	var verbose bool
	var format string
	var filters []string
	var others []seenFlag
	cmd := &cobra.Command{
		Use:   "du",
		Short: "Show what the store takes on the disk, and for what",
		Long: "Walks the store and adds up what its files take on the disk, as du(1) does. RECLAIMABLE is what build prune --all\n" +
			"would remove now.",
		Args: exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			if err := judgeOthers(others, a.note); err != nil {
				return err
			}
			fs, err := build.ParseFilters(filters)
			if err != nil {
				return err
			}
			so, err := a.storeOptions(g)
			if err != nil {
				return err
			}
			u, err := build.Disk(cmd.Context(), so, fs)
			if err != nil {
				return err
			}
			a.noteAll(u.Warnings)
			switch {
			case format == "json":
				return a.printDiskJSON(u.Entries)
			case verbose:
				return a.printDiskEntries(u.Entries)
			}
			return a.printDiskTypes(u)
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show every layer, cache mount, image, …")
	cmd.Flags().StringVar(&format, "format", "table", "`FORMAT`: table, or json for one object for each thing, a line each")
	cmd.Flags().StringSliceVar(&filters, "filter", nil, filterUsage)
	builderFlag(cmd.Flags(), &others)
	return cmd
}

const filterUsage = "`FILTER`: type=regular|exec.cachemount|source.local|source.http|image|internal, id=, description=, until=24h, inuse, shared, private; also with != and ~= (repeatable)"

func (a *app) noteAll(notes []string) {
	for _, n := range notes {
		a.note("%s", n)
	}
}

// diskJSON is one object of `du --format json`. The names are stable.
type diskJSON struct {
	ID          string     `json:"id"`
	Type        string     `json:"type"`
	Description string     `json:"description"`
	Size        int64      `json:"size"`
	Reclaimable int64      `json:"reclaimable"`
	Used        *time.Time `json:"used,omitempty"`
	InUse       bool       `json:"inUse"`
	Shared      bool       `json:"shared"`
}

func (a *app) printDiskJSON(entries []build.DiskEntry) error {
	w := bufio.NewWriter(a.stdout)
	enc := json.NewEncoder(w)
	for _, e := range entries {
		j := diskJSON{
			ID: e.ID, Type: string(e.Type), Description: e.Description, Size: e.Size, Reclaimable: e.Reclaimable, InUse: e.InUse, Shared: e.Shared,
		}
		if !e.Used.IsZero() {
			j.Used = &e.Used
		}
		if err := enc.Encode(j); err != nil {
			return fmt.Errorf("write the list: %w", err)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the list: %w", err)
	}
	return nil
}

func size(n int64) string { return units.HumanSize(float64(n)) }

// printDiskEntries prints a line for each thing.
func (a *app) printDiskEntries(entries []build.DiskEntry) error {
	w := tabwriter.NewWriter(a.stdout, 0, 4, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tTYPE\tSIZE\tRECLAIMABLE\tLAST USED\tSTATE\tDESCRIPTION")
	for _, e := range entries {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", shortID(e.ID), e.Type, size(e.Size), size(e.Reclaimable), lastUsed(e.Used), state(&e), oneLine(e.Description))
	}
	sum, reclaimable := build.Total(entries)
	fmt.Fprintf(w, "\t\t%s\t%s\t\t\ttotal\n", size(sum), size(reclaimable))
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the list: %w", err)
	}
	return nil
}

func shortID(id string) string {
	if short := shortDigest(id); short != id {
		return short
	}
	if len(id) > 40 && !strings.ContainsAny(id, "/:") {
		return id[:12]
	}
	return id
}

func lastUsed(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return ago(t)
}

func state(e *build.DiskEntry) string {
	var s []string
	if e.InUse {
		s = append(s, "in use")
	}
	if e.Shared {
		s = append(s, "shared")
	}
	if len(s) == 0 {
		return "-"
	}
	return strings.Join(s, ", ")
}

// oneLine keeps what a Dockerfile wrote from breaking a table, or a terminal.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 100 {
		s = string(r[:99]) + "…"
	}
	return s
}

// typeNames are what types are called in the table, in its order.
var typeNames = []struct {
	t    build.DiskType
	name string
}{
	{build.DiskLayer, "layers"}, {build.DiskMount, "cache mounts"}, {build.DiskImage, "images"}, {build.DiskDownload, "downloads"},
	{build.DiskContext, "contexts"}, {build.DiskInternal, "store"},
}

// printDiskTypes prints a line for each type, and what the limit is.
func (a *app) printDiskTypes(u *build.DiskUsage) error {
	w := tabwriter.NewWriter(a.stdout, 0, 4, 3, ' ', 0)
	fmt.Fprintln(w, "TYPE\tCOUNT\tSIZE\tRECLAIMABLE")
	for _, t := range typeNames {
		var of []build.DiskEntry
		for _, e := range u.Entries {
			if e.Type == t.t {
				of = append(of, e)
			}
		}
		sum, reclaimable := build.Total(of)
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", t.name, len(of), size(sum), size(reclaimable))
	}
	sum, reclaimable := build.Total(u.Entries)
	fmt.Fprintf(w, "total\t%d\t%s\t%s\n", len(u.Entries), size(sum), size(reclaimable))
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the list: %w", err)
	}
	line := u.Root + ": no limit"
	if u.Limit > 0 {
		line = fmt.Sprintf("%s: kept below %s", u.Root, size(u.Limit))
	}
	if t := u.Trimmed; !t.Time.IsZero() {
		line += fmt.Sprintf("; %s, %s were removed for that", ago(t.Time), size(t.Freed))
		if t.Error != "" {
			line += ", and then: " + oneLine(t.Error)
		}
	}
	return a.println(a.stdout, line)
}

// pruneFlags are the flags of prune as typed.
type pruneFlags struct {
	all, force, dryRun, verbose         bool
	filters                             []string
	keepStorage, max, reserved, minFree string
	others                              []seenFlag
}

func (a *app) pruneCommand(g *globalFlags) *cobra.Command {
	f := &pruneFlags{}
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove what no image in the store needs",
		Long: "Removes layers, records of steps, cache mounts and downloads that no image with a name needs and no running build uses;\n" +
			"with --all, images that FROM lines pulled as well. Names you gave with -t stay: build rmi removes them, or prune --all\n" +
			"--filter type=image. With a size, the least recently used goes until no more than that is left.",
		Args: exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.prune(cmd, g, f) },
	}
	fs := cmd.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "also images that were pulled")
	fs.BoolVarP(&f.force, "force", "f", false, "do not ask")
	fs.BoolVar(&f.dryRun, "dry-run", false, "remove nothing and show what would go")
	fs.BoolVar(&f.verbose, "verbose", false, "show every layer, cache mount, image, … that goes (otherwise the ten largest)")
	fs.StringSliceVar(&f.filters, "filter", nil, "only what fits `FILTER`, as in build du")
	fs.StringVar(&f.keepStorage, "keep-storage", "", "the same as --max-used-space, `SIZE`")
	fs.StringVar(&f.max, "max-used-space", "", "remove until the store takes no more than `SIZE`")
	fs.StringVar(&f.reserved, "reserved-space", "", "leave at least `SIZE` in the store")
	fs.StringVar(&f.minFree, "min-free-space", "", "remove until `SIZE` is free on the disk")
	builderFlag(fs, &f.others)
	return cmd
}

// options gives the flags their meaning.
func (f *pruneFlags) options() (build.PruneOptions, error) {
	p := build.PruneOptions{All: f.all, DryRun: f.dryRun}
	var err error
	if p.Filters, err = build.ParseFilters(f.filters); err != nil {
		return p, err
	}
	if f.keepStorage != "" && f.max != "" {
		return p, usagef("--keep-storage and --max-used-space are the same: give one")
	}
	for _, s := range []struct {
		name, value string
		to          *int64
	}{
		{"keep-storage", f.keepStorage, &p.Max}, {"max-used-space", f.max, &p.Max}, {"reserved-space", f.reserved, &p.Reserved},
		{"min-free-space", f.minFree, &p.MinFree},
	} {
		if s.value == "" {
			continue
		}
		if *s.to, err = units.RAMInBytes(s.value); err != nil || *s.to < 0 {
			return p, usagef("invalid --%s=%s: the form is a size such as 20GB", s.name, s.value)
		}
	}
	return p, nil
}

func (a *app) prune(cmd *cobra.Command, g *globalFlags, f *pruneFlags) error {
	p, err := f.options()
	if err != nil {
		return err
	}
	if err := judgeOthers(f.others, a.note); err != nil {
		return err
	}
	so, err := a.storeOptions(g)
	if err != nil {
		return err
	}
	if !f.force && !f.dryRun && isTerminal(a.stdin) && isTerminal(a.stderr) {
		fmt.Fprintf(a.stderr, "This removes from %s what no image in it needs, cache mounts included. Go on? [y/N] ", so.Root)
		answer, _ := bufio.NewReader(a.stdin).ReadString('\n')
		if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
			return &exitError{build.ExitUsage}
		}
	}
	done, err := build.Prune(cmd.Context(), so, p, a.waiting)
	if done == nil {
		return err
	}
	a.noteAll(done.Warnings)
	if perr := a.printPruned(done, f); err == nil {
		err = perr
	}
	return err
}

func (a *app) waiting(holder string) {
	a.note("waiting for %s, which is looking after the store", holder)
}

// shownPruned is how many lines prune prints without --verbose.
const shownPruned = 10

func (a *app) printPruned(p *build.Pruned, f *pruneFlags) error {
	entries := p.Entries
	if !f.verbose && len(entries) > shownPruned {
		entries = entries[:shownPruned]
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 3, ' ', 0)
	if len(entries) > 0 {
		fmt.Fprintln(w, "ID\tTYPE\tSIZE\tLAST USED\tDESCRIPTION")
	}
	for _, e := range entries {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", shortID(e.ID), e.Type, size(e.Size), lastUsed(e.Used), oneLine(e.Description))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the list: %w", err)
	}
	if n := len(p.Entries) - len(entries); n > 0 {
		if err := a.println(a.stdout, fmt.Sprintf("and %d more (--verbose shows all)", n)); err != nil {
			return err
		}
	}
	word := "Total reclaimed space: "
	if f.dryRun {
		word = "Total that would be reclaimed: "
	}
	return a.println(a.stdout, word+size(p.Reclaimed))
}
