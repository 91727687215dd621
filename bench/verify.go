package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// verify has skopeo read what was exported, which checks the digest of every blob, and compares: all of ours with each other
// where the row's input is the same each time, and what the builders made from the same input with what ours made.
func (t *tableRun) verify(ctx context.Context, r row, w workload, in []*contender) error {
	if r.out == noOutput {
		return nil
	}
	var first rootfs
	for _, c := range in {
		if len(c.outs) == 0 || c.cell.Error != "" {
			continue
		}
		fs, err := t.verifyOne(ctx, r, w, c)
		if ctx.Err() != nil { // nothing has failed: the run was ended
			return ctx.Err()
		}
		if err == nil && first != nil && c.b.name() != oursName {
			if diff := differences(first, fs, w.random); len(diff) > 0 {
				err = fmt.Errorf("the image is another than ours in %d paths: %s", len(diff), strings.Join(diff[:min(5, len(diff))], "; "))
			}
		}
		if err != nil {
			c.cell.Error = err.Error()
		}
		if c.b.name() == oursName {
			first = fs
		}
	}
	return nil
}

// verifyOne looks at the images of one builder, and returns what is in the first.
func (t *tableRun) verifyOne(ctx context.Context, r row, w workload, c *contender) (rootfs, error) {
	var first rootfs
	for i, out := range c.outs {
		im, err := t.check(ctx, r.out, out)
		if err != nil {
			return nil, err
		}
		switch {
		case i == 0:
			c.cell.Layers = im.diffIDs
			if c.cell.Bytes, err = sizeOf(out); err != nil {
				return nil, err
			}
			if first, err = im.flatten(); err != nil {
				return nil, err
			}
		case r.begin != changed && !w.random && !slices.Equal(im.diffIDs, c.cell.Layers):
			return nil, fmt.Errorf("build %d has other layers than the first: %v, not %v", i+1, im.diffIDs, c.cell.Layers)
		}
		if err := os.RemoveAll(im.dir); err != nil {
			return nil, err
		}
	}
	return first, nil
}

// check copies an image with skopeo.
func (t *tableRun) check(ctx context.Context, kind outKind, out string) (*image, error) {
	dir := t.states.file("verified")
	src := "oci-archive:" + out
	if kind == ociDir {
		src = "oci:" + out
	}
	cmd := exec.CommandContext(ctx, "skopeo", "copy", "--quiet", src, "dir:"+dir)
	cmd.Env = append(os.Environ(), "TMPDIR="+t.states.dir)
	if said, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("skopeo does not accept %s: %w\n%s", src, err, tail(said))
	}
	return readImage(dir)
}
