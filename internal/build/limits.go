package build

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"sync"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"build/dag"
	"build/executor"
	"build/internal/cgroup"
)

// Limits bound each RUN step by itself. They are in no key: a step gives the same result within them, or fails.
type Limits = cgroup.Limits

// DefaultCPUPeriod is the period in microseconds of a quota of CPU time that comes without one.
const DefaultCPUPeriod = cgroup.DefaultPeriod

// CheckCPUList checks the form of a list of CPUs or memory nodes.
func CheckCPUList(list string) error {
	_, err := cgroup.ParseList(list)
	return err
}

// CheckCgroupParent checks the form of the name of a group.
func CheckCgroupParent(name string) error {
	_, err := cgroup.ParentPath(name)
	return err
}

// defaultJobs is how many steps run at a time. Much of what commands do is to wait, for the network above all, so there are more of
// them than processors; but a Dockerfile of hundreds of stages must not start hundreds of compilers.
func defaultJobs() int { return max(16, 8*processors()) }

// processors is how many threads can compute at a time: what the affinity and the groups of this process allow. The Go runtime knows
// both, but of the groups only the innermost, and it never goes below 2.
func processors() int {
	n := runtime.GOMAXPROCS(0)
	if most := cgroup.CPUs(); most > 0 {
		n = min(n, int(math.Ceil(most)))
	}
	return max(n, 1)
}

// limits are the control groups of a build's steps. They are made before the holder is started, which has to be where making
// them may put this process.
type limits struct {
	mu     sync.Mutex
	opened bool
	groups *cgroup.Groups // nil without limits
	watch  *cgroup.Watch  // of the group that steps without a limit of memory are in
	err    error
}

func (l *limits) open(s *session) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opened {
		return l.err
	}
	l.opened = true
	if s.opts.Limits.Any() {
		groups, err := cgroup.Open(s.opts.Limits)
		if err != nil {
			l.err = &EnvironmentError{Err: err}
			return l.err
		}
		l.groups = groups
		for _, note := range groups.Fallback().Notes {
			s.warn("%s", note)
		}
	}
	l.watch = cgroup.NewWatch()
	return nil
}

func (l *limits) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.groups != nil {
		_ = l.groups.Close() // a later build removes what stays
		l.groups = nil
	}
}

// limitable refuses limits that cannot be kept here, before anything is fetched for a step that needs them.
func (s *session) limitable(ctx context.Context, products []*product) error {
	if !s.opts.Limits.Any() {
		return nil
	}
	for _, p := range products {
		step, err := p.ev.firstRunToDo(ctx)
		if err != nil {
			return err
		}
		if step == nil {
			continue
		}
		if err := s.limits.open(s); err != nil {
			return s.located(step, err)
		}
	}
	return nil
}

// stepGroup is the group of one step; without limits it does nothing.
type stepGroup struct {
	group *cgroup.Group // nil: the step stays in the group of the build
	watch *cgroup.Watch
}

// groupFiles says how many of the last files that come with a step belong to its group.
type groupFiles struct {
	Dir   bool // the directory of the v2 group, before the others
	Procs int
}

// stepGroup makes the group of a step, adds what takes the place of limits without one to its spec, and returns the files to send.
func (l *limits) stepGroup(req *runRequest) (stepGroup, []*os.File, error) {
	g := stepGroup{watch: l.watch}
	if l.groups == nil {
		return g, nil, nil
	}
	var err error
	if g.group, err = l.groups.New(); err != nil {
		return g, nil, &EnvironmentError{Err: err}
	}
	f := l.groups.Fallback()
	req.Spec.CPUs = f.CPUs()
	for resource, most := range map[int]int64{unix.RLIMIT_DATA: f.Data, unix.RLIMIT_NPROC: f.Procs} {
		if most > 0 {
			req.Spec.Rlimits = lowered(req.Spec.Rlimits, resource, uint64(most))
		}
	}
	if g.group == nil {
		return g, nil, nil
	}
	files := g.group.Procs()
	req.Group.Procs = len(files)
	if dir := g.group.Dir(); dir != nil {
		req.Group.Dir = true
		files = append([]*os.File{dir}, files...)
	}
	return g, files, nil
}

// lowered adds a limit to those of --ulimit, of which a lower one stays.
func lowered(have []executor.Rlimit, resource int, most uint64) []executor.Rlimit {
	out := make([]executor.Rlimit, 0, len(have)+1)
	limit := executor.Rlimit{Resource: resource, Soft: most, Hard: most}
	for _, r := range have {
		if r.Resource != resource {
			out = append(out, r)
			continue
		}
		limit.Soft, limit.Hard = min(limit.Soft, r.Soft), min(limit.Hard, r.Hard)
	}
	return append(out, limit)
}

// take gives the spec its group, in the holder, and returns the other files.
func (n groupFiles) take(spec *executor.Spec, files []*os.File) ([]*os.File, error) {
	first := len(files) - n.Procs
	if n.Procs == 0 || first < 1 {
		if n.Procs != 0 || n.Dir {
			return nil, errors.New("internal error: no files came for the control group")
		}
		return files, nil
	}
	spec.Cgroups = &executor.Cgroups{Procs: files[first:]}
	if n.Dir {
		first--
		spec.Cgroups.Dir = files[first]
	}
	return files[:first], nil
}

// OutOfMemory says that the kernel killed processes of a step for want of memory.
type OutOfMemory struct {
	Killed      int64
	Limit, Peak int64  // bytes; 0: unknown
	Shared      bool   // the step had no group of its own: it may have been processes of others
	Where       string // the group whose limit it was, when it is that of build itself or of one above
}

func (m *OutOfMemory) String() string {
	switch {
	case m.Where != "":
		return fmt.Sprintf("out of memory (limit %s of %s, which build itself is in)", units.BytesSize(float64(m.Limit)), m.Where)
	case m.Limit == 0:
		return "out of memory (of the machine: no limit is to be seen from here)"
	case m.Peak == 0:
		return fmt.Sprintf("out of memory (limit %s)", units.BytesSize(float64(m.Limit)))
	}
	return fmt.Sprintf("out of memory (limit %s, peak %s)", units.BytesSize(float64(m.Limit)), units.BytesSize(float64(m.Peak)))
}

// hint says what to do about it.
func (m *OutOfMemory) hint() string {
	switch {
	case m.Where != "":
		return "give the container or service that build runs in more memory, or let the step do less at a time (make -j, GOMAXPROCS, NODE_OPTIONS=--max-old-space-size)"
	case m.Limit == 0:
		return "let the step do less at a time (make -j, GOMAXPROCS, NODE_OPTIONS=--max-old-space-size), or add memory"
	}
	return "raise --memory, or let the step do less at a time (make -j, GOMAXPROCS, NODE_OPTIONS=--max-old-space-size)"
}

// end removes the group and says whether the kernel killed processes of the step for want of memory. failed is how the step
// ended, nil for success.
func (g stepGroup) end(failed *executor.ExitError) (*OutOfMemory, error) {
	var own cgroup.Usage
	counted := false
	var err error
	if g.group != nil {
		own, counted = g.group.Memory()
		err = g.group.Remove()
	}
	switch {
	case counted && own.OOMKills > 0:
		return &OutOfMemory{Killed: own.OOMKills, Limit: own.Limit, Peak: own.Peak, Where: own.Above}, err
	case counted || failed == nil:
		return nil, err
	}
	n, limit, where := g.watch.Killed()
	if n == 0 {
		return nil, err
	}
	return &OutOfMemory{Killed: n, Limit: limit, Where: where, Shared: true}, err
}

// endGroup ends the group of a step and tells what nobody else would.
func (e *evaluator) endGroup(step *dag.Step, g stepGroup, failed *executor.ExitError) *OutOfMemory {
	if g.group != nil {
		if n := g.group.Refused(); n > 0 {
			e.warn("%s: the kernel refused to make %d processes or threads: the limit is --pids-limit %d", step.Name, n, e.opts.Limits.Pids)
		}
	}
	oom, err := g.end(failed)
	if err != nil {
		e.warn("%s: the control group stays behind for a later build to remove: %v", step.Name, err)
	}
	if oom != nil && failed != nil && oom.Shared && failed.Code != 128+int(unix.SIGKILL) {
		e.warn("%s failed, and the kernel has killed %d processes of this build, perhaps of that step: %s", step.Name, oom.Killed, oom)
		return nil
	}
	if oom != nil && failed == nil {
		e.warn("%s succeeded, but the kernel killed %d of its processes: %s", step.Name, oom.Killed, oom)
	}
	return oom
}
